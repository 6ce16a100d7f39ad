// A vector as two of 16 bytes, for machines whose registers are no wider: compilers keep in memory what is.
//
// It does what kernels do with the compiler's own vectors, lane by lane. Included by vectors.h alone.

#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels.h"

namespace octavo {
namespace OCTAVO_ISA {

template <typename V>
struct Pair {
  V low, high;

  template <typename W>
  OCTAVO_INLINE explicit operator Pair<W>() const {  // the same bits
    return {(W)low, (W)high};
  }
  OCTAVO_INLINE auto operator[](int lane) const {
    constexpr int half = sizeof(V) / sizeof(low[0]);
    return lane < half ? low[lane] : high[lane - half];
  }
};

template <typename V>
using LaneOf = std::remove_cvref_t<decltype(V{}[0])>;

template <typename V>
OCTAVO_INLINE Pair<V> pair_of(V low, V high) {
  return {low, high};
}

#define OCTAVO_PAIRWISE(op)                                   \
  template <typename V>                                       \
  OCTAVO_INLINE auto operator op(Pair<V> x, Pair<V> y) {      \
    return pair_of(x.low op y.low, x.high op y.high);         \
  }                                                           \
  template <typename V>                                       \
  OCTAVO_INLINE Pair<V> operator op(Pair<V> x, LaneOf<V> y) { \
    return pair_of(x.low op y, x.high op y);                  \
  }

OCTAVO_PAIRWISE(+)
OCTAVO_PAIRWISE(-)
OCTAVO_PAIRWISE(*)
OCTAVO_PAIRWISE(/)
OCTAVO_PAIRWISE(&)
OCTAVO_PAIRWISE(|)
OCTAVO_PAIRWISE(<<)
OCTAVO_PAIRWISE(>>)
OCTAVO_PAIRWISE(<)
OCTAVO_PAIRWISE(!=)
#undef OCTAVO_PAIRWISE

template <typename V>
OCTAVO_INLINE Pair<V> operator-(Pair<V> x) {
  return {-x.low, -x.high};
}

template <typename V>
OCTAVO_INLINE Pair<V> operator~(Pair<V> x) {
  return {~x.low, ~x.high};
}

template <typename V>
OCTAVO_INLINE Pair<V>& operator+=(Pair<V>& x, Pair<V> y) {
  return x = x + y;
}

template <typename V>
OCTAVO_INLINE Pair<V>& operator*=(Pair<V>& x, Pair<V> y) {
  return x = x * y;
}

template <typename V>
OCTAVO_INLINE Pair<V>& operator|=(Pair<V>& x, Pair<V> y) {
  return x = x | y;
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
