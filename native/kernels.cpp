// The table of one instruction set's kernels.

#include "kernels.h"

#include "variant.h"
#include "vectors.h"

namespace octavo {
namespace OCTAVO_ISA {

static bool supported() {
#ifdef __AVX512VNNI__
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
#elif defined(__AVX2__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
  return true;
#endif
}

}  // namespace OCTAVO_ISA

#define OCTAVO_JOIN_(a, b) a##b
#define OCTAVO_JOIN(a, b) OCTAVO_JOIN_(a, b)
#define OCTAVO_TEXT_(a) #a
#define OCTAVO_TEXT(a) OCTAVO_TEXT_(a)

const Kernels& OCTAVO_JOIN(OCTAVO_ISA, _kernels)() {
  static const Kernels kernels = {
      .name = OCTAVO_TEXT(OCTAVO_ISA),
      .supported = OCTAVO_ISA::supported,
      .lanes = OCTAVO_ISA::kLanes,
      .linear_quantised = OCTAVO_ISA::linear_quantised,
      .linear_gated = OCTAVO_ISA::linear_gated,
      .linear_float = OCTAVO_ISA::linear_float,
      .quantise = OCTAVO_ISA::quantise,
      .unpack_row = OCTAVO_ISA::unpack_row,
      .rms_norm = OCTAVO_ISA::rms_norm,
      .layer_norm = OCTAVO_ISA::layer_norm,
      .rope = OCTAVO_ISA::rope,
      .activate = OCTAVO_ISA::activate,
      .store_kv = OCTAVO_ISA::store_kv,
      .fetch_slot = OCTAVO_ISA::fetch_slot,
      .attend = OCTAVO_ISA::attend,
      .attend_span = OCTAVO_ISA::attend_span,
      .fold_spans = OCTAVO_ISA::fold_spans,
      .run_maxima = OCTAVO_ISA::run_maxima,
      .exponentials = OCTAVO_ISA::exponentials,
      .peak_float = OCTAVO_ISA::peak_float,
      .peak_integer = OCTAVO_ISA::peak_integer,
      .read_all = OCTAVO_ISA::read_all,
  };
  return kernels;
}

}  // namespace octavo
