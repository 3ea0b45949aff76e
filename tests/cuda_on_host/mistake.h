// Which of the mistakes that planted.py has put into this code is made: a number, 0 for none.
#pragma once

#include <cstdlib>

inline const int planted_mistake = [] {
  const char* number = std::getenv("PLANTED_MISTAKE");
  return number == nullptr ? 0 : std::atoi(number);
}();
