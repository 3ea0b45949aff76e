// From values to types: where a dtype or a flag becomes a template argument.
#pragma once

#include <type_traits>

#include "problem.h"

namespace torchce {

template <class T>
struct Type {
  using type = T;
};

#ifdef __CUDACC__
#pragma nv_exec_check_disable  // visits a host's function on the host and a kernel's on the device
#endif
template <class Float64, class Float32, class BFloat16, class Float16, class Fn>
CE_HD auto visit_dtype(DType dtype, Fn&& fn) {
  switch (dtype) {
    case DType::float64:
      return fn(Type<Float64>{});
    case DType::float32:
      return fn(Type<Float32>{});
    case DType::bfloat16:
      return fn(Type<BFloat16>{});
    default:
      return fn(Type<Float16>{});
  }
}

template <class Fn>
auto visit_bool(bool value, Fn&& fn) {
  return value ? fn(std::true_type{}) : fn(std::false_type{});
}

}  // namespace torchce
