// Linears with quantised weights.

#include <algorithm>
#include <type_traits>

#include "dot.h"

namespace octavo {
namespace OCTAVO_ISA {

// Tiles multiplied at a time share what they load of the activations, where registers hold the integers of them all.
#ifdef __AVX2__
constexpr int kTogether = 2;
#else
constexpr int kTogether = 1;
#endif

// Asks for a part of `tiles` tiles from `tile` on.
static OCTAVO_INLINE void fetch_part(const Weight& w, int64_t tile, int64_t tiles, int64_t part, int64_t parts) {
  const int64_t bytes = tiles * w.tile_bytes();
  const int64_t begin = bytes * part / parts / 64 * 64, end = bytes * (part + 1) / parts;
  fetch_lines(w.data + tile * w.tile_bytes() + begin, end - begin);
}

template <int N>
using Count = std::integral_constant<int, N>;

// With so few rows one tile after the other is read from memory, in a single stream.
static inline bool are_few(int64_t rows) { return rows < 2 * kPanel; }

// body(count of rows, row) for panel after panel, the last one of fewer rows if need be. While one is multiplied, a
// part of what comes next is fetched: fetch(part, parts).
template <typename Fetch, typename Body>
static inline void for_panels(int64_t rows, Fetch fetch, Body body) {
  const int64_t panels = rows / kPanel;
  for (int64_t panel = 0; panel < panels; panel++) {
    if (!are_few(rows)) fetch(panel, panels);
    body(Count<kPanel>(), panel * kPanel);
  }
  static_assert(kPanel == 4);
  switch (rows % kPanel) {
    case 3: return body(Count<3>(), panels * kPanel);
    case 2: return body(Count<2>(), panels * kPanel);
    case 1: return body(Count<1>(), panels * kPanel);
    default: return;
  }
}

template <WeightKind kind>
using Kind = std::integral_constant<WeightKind, kind>;

// go(half_scales, kind, records): constants, and what a weight of that kind is multiplied by.
template <typename Go>
static inline void choose(const Weight& w, const void* activations, Go go) {
  const auto kind = [&](auto half_scales) {
    const auto* records = static_cast<const Activations16*>(activations);
    if (w.kind == WeightKind::kS8) return go(half_scales, Kind<WeightKind::kS8>(), records);
    if (w.precise) return go(half_scales, Kind<WeightKind::kU4>(), records);
    return go(half_scales, Kind<WeightKind::kU4>(), static_cast<const Activations8*>(activations));
  };
  w.half_scales ? kind(std::true_type()) : kind(std::false_type());
}

// --- one weight after the other --------------------------------------------------------------------------------------

template <bool half_scales, WeightKind kind, typename Record>
static void multiply_tiles(const Weight& w, const Record* x, int64_t rows, const Output& out, Range tiles) {
  const bool few = are_few(rows);
  // M rows from `row` on times T tiles.
  const auto multiply_some = [&](auto m, auto t, int64_t row, int64_t tile) {
    constexpr int M = m, T = t;
    F total[T][M];
    multiply<half_scales, M, T>(Factors<kind, Record>{w, x + row * w.blocks(), tile, 1, few}, total);
    for (int j = 0; j < T; j++)
      for (int i = 0; i < M; i++) put(out, row + i, (tile + j) * kLanes, total[j][i], w.bias);
  };
  for (int64_t tile = tiles.first; tile < tiles.last; tile += 2) {
    const int64_t count = std::min<int64_t>(tiles.last - tile, 2),
                  next = std::clamp<int64_t>(w.tiles() - tile - 2, 0, 2);
    const auto fetch = [&](int64_t part, int64_t parts)
                           OCTAVO_INLINE_LAMBDA { fetch_part(w, tile + 2, next, part, parts); };
    if (kTogether == count && !few)
      for_panels(rows, fetch, [&](auto m, int64_t row) { multiply_some(m, Count<kTogether>(), row, tile); });
    else
      for (int64_t t = tile; t < tile + count; t++)
        for_panels(rows, fetch, [&](auto m, int64_t row) { multiply_some(m, Count<1>(), row, t); });
  }
}

void linear_quantised(const Weight& w, const void* activations, int64_t rows, const Output& out, Range tiles) {
  choose(w, activations, [&](auto half_scales, auto kind, const auto* x) {
    multiply_tiles<half_scales, kind>(w, x, rows, out, tiles);
  });
}

// --- two weights side by side: function(gate) * up, quantised for the linear that reads it ---------------------------

template <bool half_scales, int M, WeightKind kind, typename Record>
static void gated_panel(Factors<kind, Record> in, int64_t row, Function function, const Records& out, int64_t block) {
  const float* bias = in.weight.bias;
  alignas(64) float gate[M][kBlock], up[M][kBlock];
  for (int i = 0; i < kBlock / kLanes; i++, in.tile++) {
    F total[2][M];
    if (kTogether == 2 && !in.few) {
      multiply<half_scales, M, kTogether>(in, total);
    } else {
      Factors<kind, Record> second = in;
      second.tile += in.apart;
      multiply<half_scales, M, 1>(in, total);
      multiply<half_scales, M, 1>(second, total + 1);
    }
    for (int m = 0; m < M; m++) {
      if (bias) {
        total[0][m] += load(bias + in.tile * kLanes);
        total[1][m] += load(bias + (in.tile + in.apart) * kLanes);
      }
      store(gate[m] + i * kLanes, total[0][m]);
      store(up[m] + i * kLanes, total[1][m]);
    }
  }
  activate(function, gate[0], up[0], M * kBlock, gate[0]);
  for (int m = 0; m < M; m++) quantise(out, gate[m], kBlock, row + m, block);
}

void linear_gated(const Weight& w, const void* activations, int64_t rows, Function function, const Records& out,
                  Range blocks) {
  const int64_t tiles = kBlock / kLanes, half = w.tiles() / 2;
  choose(w, activations, [&](auto half_scales, auto kind, const auto* x) {
    using Record = std::remove_cvref_t<decltype(*x)>;
    for (int64_t block = blocks.first; block < blocks.last; block++) {
      const int64_t next = (block + 1) * tiles, count = next < half ? tiles : 0;
      const auto fetch = [&](int64_t part, int64_t parts) OCTAVO_INLINE_LAMBDA {
        fetch_part(w, next, count, part, parts);
        fetch_part(w, half + next, count, part, parts);
      };
      for_panels(rows, fetch, [&](auto m, int64_t row) {
        const Factors<kind, Record> in{w, x + row * w.blocks(), block * tiles, half, are_few(rows)};
        gated_panel<half_scales, m>(in, row, function, out, block);
      });
    }
  });
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
