// Which of the mistakes that planted.py has put into this code is made: a number, 0 for none.
#pragma once

#include <cstdlib>

inline const int planted_mistake = std::atoi(std::getenv("PLANTED_MISTAKE"));
