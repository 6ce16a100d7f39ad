// What this machine does at best, measured: the roofline that benchmarks are held against.

#pragma once

#include "kernels.h"

namespace octavo {

struct Ceilings {
  double bytes_per_second;             // read from memory
  double float_operations_per_second;  // a multiplication and an addition are two
  double integer_operations_per_second;
};

// With `threads` threads at once; takes about a second.
Ceilings measure_ceilings(const Kernels& kernels, int threads);

}  // namespace octavo
