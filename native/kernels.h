// The kernels of one instruction set, and the data they work on.
//
// Every kernel is written once and compiled once per instruction set; `Kernels` is the table of one compilation. A
// row's result never depends on how many rows there are or on which thread computes it: each output element is
// accumulated in one fixed order.

#pragma once

#include <cstddef>
#include <cstdint>

namespace octavo {

constexpr int64_t kBlock = 32;     // input features that share a scale
constexpr int64_t kRun = 64;       // neighbouring logits that a sampler looks at together
constexpr int64_t kPanel = 4;      // rows of activations that a kernel multiplies with a tile at a time
constexpr int64_t kMaxLanes = 16;  // of the widest vectors

// GCC takes a function that does nothing but prefetch for one that does nothing, and drops calls of it.
#define OCTAVO_INLINE inline __attribute__((always_inline))
#define OCTAVO_INLINE_LAMBDA __attribute__((always_inline))

OCTAVO_INLINE void fetch_lines(const uint8_t* data, int64_t bytes) {
  for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(data + line);
}

enum class WeightKind : int32_t { kU4, kS8, kF32, kF16, kBF16 };

enum class ActivationKind : int32_t { k8, k16 };

// An activation function, as octavo.graph.ops.Activation defines it.
enum class Function : int32_t { kSilu, kGelu, kGeluTanh };

// The input of a block whose 16 bits stand at `index`: neighbours are multiplied together, and these come out of a lane
// of kU4, two and two, where all of its bytes but every other one are masked away.
constexpr int64_t in_pairs(int64_t index) {
  const int64_t a = index / 16, c = index / 8 % 2, odd = index / 4 % 2, half = index / 2 % 2, second = index % 2;
  return 16 * a + 8 * half + 4 * c + odd + 2 * second;
}
constexpr int64_t pairs_index(int64_t input) {  // the other way round
  const int64_t a = input / 16, half = input / 8 % 2, c = input / 4 % 2, second = input / 2 % 2, odd = input % 2;
  return 16 * a + 8 * c + 4 * odd + 2 * half + second;
}

// A weight matrix [out, in], repacked into tiles of `tile` output features, as many as a vector of the instruction set
// has lanes. out is a multiple of the tile and, for the quantised kinds, in is one of kBlock; what was added is zero.
//
// kU4: w = scale * q + minimum, q in 0..15. kS8: w = scale * q (+ minimum), q in -128..127. They are records
// [tile][block] of
//   kU4  16 * tile bytes: byte 4 * (tile * i + lane) + j holds input k = 16 * (i / 2) + 4 * (i % 2) + j in its low and
//        k + 8 in its high half, i in 0..3, j in 0..3
//   kS8  32 * tile bytes: byte 2 * (tile * i + lane) + j holds input in_pairs(2 * i + j), i in 0..15, j in 0..1
//   scales [kBlock / group][tile], then minima [tile] where there are any, both float16 or both float32.
// kF32, kF16, kBF16: element [tile][input][lane].
struct Weight {
  WeightKind kind;
  int32_t group;     // inputs that share a scale: 32, or 16 (kS8 alone)
  bool half_scales;  // scales and minima are float16
  bool minima;
  bool precise;  // kU4 alone: it takes activations of 16 bits
  int64_t out, in, tile;
  const uint8_t* data;
  const float* bias;  // float[out], null: none

  bool quantised() const { return kind == WeightKind::kU4 || kind == WeightKind::kS8; }
  ActivationKind activations() const {
    return kind == WeightKind::kS8 || precise ? ActivationKind::k16 : ActivationKind::k8;
  }
  int64_t tiles() const { return out / tile; }
  int64_t blocks() const { return in / kBlock; }
  int64_t integer_bytes() const { return kind == WeightKind::kU4 ? tile * kBlock / 2 : tile * kBlock; }
  int64_t scale_bytes() const { return tile * (half_scales ? 2 : 4); }  // of one per lane
  int64_t pairs() const { return (tiles() + 1) / 2; }  // of tiles, which kernels like to multiply together
  int64_t tile_bytes() const {
    return quantised() ? blocks() * block_bytes() : in * tile * (kind == WeightKind::kF32 ? 4 : 2);
  }
  int64_t block_bytes() const { return integer_bytes() + scale_bytes() * (kBlock / group + (minima ? 1 : 0)); }
};

// Activations quantised per row and block, x = scale * q, as records [panel][block][row of the panel].
// `sum` is that of x: what a weight's minimum is multiplied by.
//
// With eight bits one large value takes most of them from others that share its scale. So these are few: inputs that a
// kernel multiplies together, those of one i of kU4, whose scale is the block's times a whole number.
struct Activations8 {  // for kU4: x = scale * factor * q, q in -127..127
  int8_t q[kBlock];
  int32_t factors[4];  // times kFactorUnit, by i
  float scale, sum;
};
// What 8 bits left of one of these groups, 4 * block + i: x - scale * factor * q = scale * q of this record. Each row
// has some, of the groups that are rounded most; the `sum` of their blocks holds them too.
struct Residual8 {
  int8_t q[8];
  float scale;
  int32_t group;
};
struct Activations16 {  // for kS8 and precise kU4: q in -32767..32767, in_pairs
  int16_t q[kBlock];
  float scale, sum;
};

constexpr int32_t kMaxFactor = 1024;  // or one more: sums of 4 * factor * 8 * 15 * 128 fit in 32 bits

constexpr int64_t kMaxActivationBytes = sizeof(Activations16);  // of a record

// For how many blocks a row has one, where its activations are all at hand when they are quantised.
constexpr int64_t kBlocksPerResidual = 6;
constexpr int64_t residuals_of(int64_t blocks) { return (blocks + kBlocksPerResidual - 1) / kBlocksPerResidual; }

// Where they stand: after the blocks of a panel, [row of the panel][residual].
struct Records {
  ActivationKind kind;
  int64_t blocks, residuals;  // of a row
  void* data;

  int64_t record_bytes() const { return kind == ActivationKind::k8 ? sizeof(Activations8) : sizeof(Activations16); }
  int64_t panel_bytes() const { return kPanel * (blocks * record_bytes() + residuals * sizeof(Residual8)); }
  uint8_t* panel(int64_t row) const { return static_cast<uint8_t*>(data) + row / kPanel * panel_bytes(); }
  Residual8* residuals_of_row(int64_t row) const {
    return reinterpret_cast<Residual8*>(panel(row) + kPanel * blocks * record_bytes()) + row % kPanel * residuals;
  }
};

enum class KvType : int32_t { kF32, kF16, kI8 };

// A layer's KV pages. A page is, one after the other, each on whole cache lines,
//   keys [kv head][head_dim][page_size], values [kv head][page_size][padded_dim], and for kI8, value = scale * q,
//   float32 scales of keys [kv head][page_size] and of values [kv head][page_size].
// Keys of neighbouring tokens are neighbours, so that the lanes of a vector are tokens.
struct KvLayer {
  int64_t heads, kv_heads, head_dim, page_size, window;  // window 0: all positions
  float scale;
  KvType type;
  uint8_t* pages;

  int64_t group() const { return heads / kv_heads; }  // query heads of a KV head
  int64_t part_floats() const { return padded_dim() + kMaxLanes; }
  int64_t item_bytes() const { return type == KvType::kF32 ? 4 : type == KvType::kF16 ? 2 : 1; }
  int64_t padded_dim() const { return (head_dim + kMaxLanes - 1) / kMaxLanes * kMaxLanes; }
  int64_t key_bytes() const { return whole_lines(kv_heads * head_dim * page_size * item_bytes()); }
  int64_t value_bytes() const { return whole_lines(kv_heads * page_size * padded_dim() * item_bytes()); }
  int64_t scale_bytes() const { return type == KvType::kI8 ? whole_lines(4 * kv_heads * page_size) : 0; }
  int64_t page_bytes() const { return key_bytes() + value_bytes() + 2 * scale_bytes(); }

  static int64_t whole_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }
};

constexpr int64_t kMaxHeadDim = 512;
constexpr int64_t kMaxAttendRows = 16;
constexpr int64_t kSpan = 512;  // positions that share a softmax

// Neighbouring tokens of a sequence, at most kMaxAttendRows, and its pages: queries and output [token][head][head_dim].
struct Tokens {
  const int32_t* page_row;
  int64_t position, rows;  // of the first token; how many
  const float* queries;
  int64_t query_stride;
  float* output;
  int64_t output_stride;
};

// Where a linear writes: y[row * y_stride + feature] (+ residual[row * residual_stride + feature]).
struct Output {
  float* y;
  int64_t y_stride;
  const float* residual;  // null: none
  int64_t residual_stride;
};

struct Range {  // [first, last)
  int64_t first, last;
};

struct Kernels {
  const char* name;
  bool (*supported)();
  int64_t lanes;  // of a vector: output features of a tile

  // x @ W.T (+ bias) (+ residual), for some tiles.
  void (*linear_quantised)(const Weight&, const Records& activations, int64_t rows, const Output&, Range tiles);
  // The first half of the features are gates, the others go through them: function(gate) * other, quantised, for some
  // blocks of these. Each half is a multiple of kBlock.
  void (*linear_gated)(const Weight&, const Records& activations, int64_t rows, Function, const Records& out,
                       Range blocks);
  void (*linear_float)(const Weight&, const float* x, int64_t x_stride, int64_t rows, const Output&, Range tiles);
  // `width` floats as the blocks from `block` on of row `row`; the last one is padded with zeros.
  void (*quantise)(const Records& out, const float* x, int64_t width, int64_t row, int64_t block);
  // Row `row` of a weight matrix as floats.
  void (*unpack_row)(const Weight&, int64_t row, int64_t width, float* y);
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t runs, int64_t length, float* y);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int64_t width, float* y);
  void (*rope)(const float* x, const float* cosine, const float* sine, int64_t heads, int64_t half, float* y);
  // function(x), times `gate` where there is one.
  void (*activate)(Function, const float* x, const float* gate, int64_t width, float* y);
  // One token's keys and values [kv head][head_dim] into slot `slot` (page * page_size + offset).
  void (*store_kv)(const KvLayer&, const float* keys, const float* values, int64_t slot);
  // Asks for the memory of a slot, before a token is stored there.
  void (*fetch_slot)(const KvLayer&, int64_t slot);
  // All query heads of KV heads [first, last) over the pages of the sequence. `then`, unless null: the tokens that come
  // next, from KV head `then_first` on.
  void (*attend)(const KvLayer&, const Tokens&, int64_t first, int64_t last, const Tokens* then, int64_t then_first);
  // The same for one token alone, by spans of positions, so that several threads can work on it. What a span comes to
  // is left in `part`, `part_floats` for each query head of the KV head; the part of the next span is `stride` floats
  // further.
  void (*attend_span)(const KvLayer&, const Tokens& token, int64_t kv_head, int64_t span, float* part);
  void (*fold_spans)(const KvLayer&, const Tokens& token, int64_t kv_head, float* parts, int64_t spans, int64_t stride);
  // The largest of every kRun logits, nan aside, to maxima[0, ceil(count / kRun)). Returns the largest of all, or nan
  // if any is.
  float (*run_maxima)(const float* x, int64_t count, float* maxima);
  // y = 2 ** ((x - highest) * factor), for no x above `highest`, which is finite: relative error below 2e-12, and 0 for
  // less than 2 ** -1022. Returns the sum, added in an order that depends on `count` alone.
  double (*exponentials)(const float* x, int64_t count, float highest, double factor, double* y);
  // Loops for measure_ceilings; the first two return how many operations they did.
  int64_t (*peak_float)(int64_t rounds);
  int64_t (*peak_integer)(int64_t rounds);
  float (*read_all)(const float* data, int64_t count);
};

// The build says which of them there are: with_kernels_avx2 and so on.
const Kernels& portable_kernels();
const Kernels& avx2_kernels();
const Kernels& avx512vnni_kernels();

}  // namespace octavo
