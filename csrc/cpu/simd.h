// One loop body, compiled for AVX-512, AVX2 and the baseline of the compiler's target.
//
// `multiversion(body)` runs `body` compiled for the best instruction set this machine has. The body
// is a lambda around plain loops: it is inlined into a function with a target attribute, so the
// vectoriser sees that target. Everything it calls must be always_inline (CE_HD), else it would be
// compiled for the baseline. Elsewhere than x86-64 the baseline is the only version.
#pragma once

namespace torchce::cpu {

enum class Isa { baseline, avx2, avx512 };

// The best of this machine, or a lesser one named by the environment variable TORCHCE_ISA
// (avx2, baseline), which exists so that every version can be tested. Read once.
extern const Isa kIsa;

const char* isa_name();

#if defined(__x86_64__) && defined(__GNUC__)

template <class Body>
[[gnu::target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,bmi,bmi2,"
              "prefer-vector-width=512"),
  gnu::flatten]]
void run_avx512(const Body& body) {
  body();
}

template <class Body>
[[gnu::target("avx2,fma,bmi,bmi2"), gnu::flatten]]
void run_avx2(const Body& body) {
  body();
}

template <class Body>
[[gnu::noinline, gnu::flatten]]
void run_baseline(const Body& body) {
  body();
}

template <class Body>
inline void multiversion(const Body& body) {
  switch (kIsa) {
    case Isa::avx512:
      return run_avx512(body);
    case Isa::avx2:
      return run_avx2(body);
    default:
      return run_baseline(body);
  }
}

#else

template <class Body>
[[gnu::noinline]]
void multiversion(const Body& body) {
  body();
}

#endif

}  // namespace torchce::cpu
