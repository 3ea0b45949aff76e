#include "simd.h"

#include <cstdlib>
#include <cstring>

namespace torchce::cpu {
namespace {

Isa best_isa() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
      !__builtin_cpu_supports("bmi") || !__builtin_cpu_supports("bmi2")) {
    return Isa::baseline;
  }
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  return avx512 ? Isa::avx512 : Isa::avx2;
#else
  return Isa::baseline;
#endif
}

Isa chosen_isa() {
  const Isa best = best_isa();
  const char* wanted = std::getenv("TORCHCE_ISA");
  if (wanted == nullptr || best == Isa::baseline) return best;
  if (std::strcmp(wanted, "baseline") == 0) return Isa::baseline;
  return std::strcmp(wanted, "avx2") == 0 ? Isa::avx2 : best;
}

}  // namespace

const Isa kIsa = chosen_isa();

const char* isa_name() {
  switch (kIsa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

}  // namespace torchce::cpu
