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

// Activations from `row`, a panel's first one, and some tiles.
template <WeightKind kind, typename Record>
static inline Factors<kind, Record> factors(const Weight& w, const Records& x, int64_t row, int64_t tile, int64_t apart,
                                            bool few) {
  return {w, reinterpret_cast<const Record*>(x.panel(row)), x.residuals_of_row(row), x.residuals, tile, apart, few};
}

template <WeightKind kind>
using Kind = std::integral_constant<WeightKind, kind>;

// go(half_scales, kind, record): constants, and a record (none in particular) of what such a weight is multiplied by.
template <typename Go>
static inline void choose(const Weight& w, Go go) {
  const auto kind = [&](auto half_scales) {
    if (w.kind == WeightKind::kS8) return go(half_scales, Kind<WeightKind::kS8>(), Activations16());
    if (w.precise) return go(half_scales, Kind<WeightKind::kU4>(), Activations16());
    return go(half_scales, Kind<WeightKind::kU4>(), Activations8());
  };
  w.half_scales ? kind(std::true_type()) : kind(std::false_type());
}

// Asks for what is read and written once the products are there: in another row it is in another line.
static OCTAVO_INLINE void fetch_output(const Output& out, int64_t row, int64_t feature, int64_t count) {
  const int64_t line = 64 / sizeof(float);
  for (int64_t f = feature; f < feature + count; f += line) {
    __builtin_prefetch(out.y + row * out.y_stride + f, 1);
    if (out.residual) __builtin_prefetch(out.residual + row * out.residual_stride + f);
  }
}

// --- one weight after the other --------------------------------------------------------------------------------------

template <bool half_scales, WeightKind kind, typename Record>
static void multiply_tiles(const Weight& w, const Records& x, int64_t rows, const Output& out, Range tiles) {
  const bool few = are_few(rows);
  // M rows from `row` on times T tiles.
  const auto multiply_some = [&](auto m, auto t, int64_t row, int64_t tile) {
    constexpr int M = m, T = t;
    for (int i = 0; i < M; i++) fetch_output(out, row + i, tile * kLanes, T * kLanes);
    F total[T][M];
    multiply<half_scales, M, T>(factors<kind, Record>(w, x, row, tile, 1, few), total);
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

void linear_quantised(const Weight& w, const Records& activations, int64_t rows, const Output& out, Range tiles) {
  choose(w, [&](auto half_scales, auto kind, auto record) {
    multiply_tiles<half_scales, kind, decltype(record)>(w, activations, rows, out, tiles);
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

void linear_gated(const Weight& w, const Records& activations, int64_t rows, Function function, const Records& out,
                  Range blocks) {
  const int64_t tiles = kBlock / kLanes, half = w.tiles() / 2;
  choose(w, [&](auto half_scales, auto kind, auto record) {
    for (int64_t block = blocks.first; block < blocks.last; block++) {
      const int64_t next = (block + 1) * tiles, count = next < half ? tiles : 0;
      const auto fetch = [&](int64_t part, int64_t parts) OCTAVO_INLINE_LAMBDA {
        fetch_part(w, next, count, part, parts);
        fetch_part(w, half + next, count, part, parts);
      };
      for_panels(rows, fetch, [&](auto m, int64_t row) {
        const auto in = factors<kind, decltype(record)>(w, activations, row, block * tiles, half, are_few(rows));
        gated_panel<half_scales, m>(in, row, function, out, block);
      });
    }
  });
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
