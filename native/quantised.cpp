// Linears with quantised weights.

#include <algorithm>
#include <type_traits>

#include "dot.h"

namespace octavo {
namespace OCTAVO_ISA {

// Tiles multiplied at a time share what they load of the activations, where registers hold the sums of them all. With
// few rows one tile after the other is read from memory, in a single stream.
template <bool few>
constexpr int kTiles = kLanes == 16 && !few ? 2 : 1;

// Asks for a part of `tiles` tiles from `tile` on.
static OCTAVO_INLINE void fetch_part(const Weight& w, int64_t tile, int64_t tiles, int64_t part, int64_t parts) {
  const int64_t bytes = tiles * w.tile_bytes();
  const int64_t begin = bytes * part / parts / 64 * 64, end = bytes * (part + 1) / parts;
  fetch_lines(w.data + tile * w.tile_bytes() + begin, end - begin);
}

template <int M>
using Rows = std::integral_constant<int, M>;

// body(Rows<M>, row) for panel after panel, the last one of fewer rows if need be. While one is multiplied, a part of
// what comes next is fetched: fetch(part, parts).
template <bool few, typename Fetch, typename Body>
static inline void for_panels(int64_t rows, Fetch fetch, Body body) {
  const int64_t panels = rows / kPanel;
  for (int64_t panel = 0; panel < panels; panel++) {
    if (!few) fetch(panel, panels);
    body(Rows<kPanel>(), panel * kPanel);
  }
  static_assert(kPanel == 4);
  switch (rows % kPanel) {
    case 3: return body(Rows<3>(), panels * kPanel);
    case 2: return body(Rows<2>(), panels * kPanel);
    case 1: return body(Rows<1>(), panels * kPanel);
  }
}

// --- one weight after the other --------------------------------------------------------------------------------------

template <bool half_scales, bool few, int M, int T, typename Record>
static __attribute__((noinline)) void tiles_of_panel(const Weight& w, const Record* x, int64_t row, const Output& out,
                                                     int64_t tile) {
  F total[T][M];
  multiply<half_scales, few, M, T>(w, x + row * w.blocks(), tile, 1, total);
  OCTAVO_EACH(t, T)
    OCTAVO_EACH(m, M) put(out, row + m, (tile + t) * kLanes, total[t][m], w.bias);
}

template <bool half_scales, bool few, typename Record>
static void tiles(const Weight& w, const Record* x, int64_t rows, const Output& out, int64_t first, int64_t last) {
  constexpr int T = kTiles<few>;
  for (int64_t tile = first; tile < last; tile += 2) {
    const int64_t count = std::min<int64_t>(last - tile, 2), next = std::clamp<int64_t>(w.tiles() - tile - 2, 0, 2);
    const auto fetch = [&](int64_t part, int64_t parts)
                           OCTAVO_INLINE_LAMBDA { fetch_part(w, tile + 2, next, part, parts); };
    if (count == T)
      for_panels<few>(rows, fetch,
                      [&](auto m, int64_t row) { tiles_of_panel<half_scales, few, m, T>(w, x, row, out, tile); });
    else
      for (int64_t t = tile; t < tile + count; t++)
        for_panels<few>(rows, fetch,
                        [&](auto m, int64_t row) { tiles_of_panel<half_scales, few, m, 1>(w, x, row, out, t); });
  }
}

// go(half_scales, few, records): constants, and the records of the weight's kind.
template <typename Go>
static inline void choose(const Weight& w, const void* activations, int64_t rows, Go go) {
  const auto kind = [&](auto half_scales, auto few) {
    switch (w.activations()) {
      case ActivationKind::k8: return go(half_scales, few, static_cast<const Activations8*>(activations));
      case ActivationKind::k16: return go(half_scales, few, static_cast<const Activations16*>(activations));
      case ActivationKind::kSplit16: return go(half_scales, few, static_cast<const SplitActivations16*>(activations));
    }
  };
  const auto count = [&](auto half_scales) {
    rows < 2 * kPanel ? kind(half_scales, std::true_type()) : kind(half_scales, std::false_type());
  };
  w.half_scales ? count(std::true_type()) : count(std::false_type());
}

void linear_quantised(const Weight& w, const void* activations, int64_t rows, const Output& out, int64_t first,
                      int64_t last) {
  choose(w, activations, rows,
         [&](auto half_scales, auto few, const auto* x) { tiles<half_scales, few>(w, x, rows, out, first, last); });
}

// --- two weights side by side: function(gate) * up, quantised for the linear that reads it ---------------------------

template <bool half_scales, bool few, int M, typename Record>
static void gated_panel(const Weight& w, const Record* x, int64_t row, int32_t function, const Records& out,
                        int64_t block) {
  constexpr int T = kTiles<few>;
  const int64_t half = w.tiles() / 2;
  alignas(64) float gate[M][kBlock], up[M][kBlock];
  for (int i = 0; i < kBlock / kLanes; i++) {
    const int64_t tile = block * (kBlock / kLanes) + i;
    F total[2][M];
    for (int t = 0; t < 2; t += T)
      multiply<half_scales, few, M, T>(w, x + row * w.blocks(), tile + t * half, half, total + t);
    if (w.bias)
      OCTAVO_EACH(t, 2)
        OCTAVO_EACH(m, M) total[t][m] += load(w.bias + (tile + t * half) * kLanes);
    OCTAVO_EACH(m, M) store(gate[m] + i * kLanes, total[0][m]), store(up[m] + i * kLanes, total[1][m]);
  }
  activate(function, gate[0], up[0], M * kBlock, gate[0]);
  for (int m = 0; m < M; m++) quantise(out, gate[m], kBlock, row + m, block);
}

void linear_gated(const Weight& w, const void* activations, int64_t rows, int32_t function, const Records& out,
                  int64_t first, int64_t last) {
  const int64_t tiles = kBlock / kLanes, half = w.tiles() / 2;
  choose(w, activations, rows, [&](auto half_scales, auto few, const auto* x) {
    for (int64_t block = first; block < last; block++) {
      const int64_t next = (block + 1) * tiles, count = next < half ? tiles : 0;
      const auto fetch = [&](int64_t part, int64_t parts) OCTAVO_INLINE_LAMBDA {
        fetch_part(w, next, count, part, parts);
        fetch_part(w, half + next, count, part, parts);
      };
      for_panels<few>(rows, fetch,
                      [&](auto m, int64_t row) { gated_panel<half_scales, few, m>(w, x, row, function, out, block); });
    }
  });
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
