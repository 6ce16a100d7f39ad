// The kernels of one instruction set, and the data they work on.
//
// Every kernel is written once (kernels.cpp) and compiled once per instruction set; `Kernels` is the table of one
// compilation. A row's result never depends on how many rows there are or on which thread computes it: each output
// element is accumulated in one fixed order.

#pragma once

#include <cstddef>
#include <cstdint>

namespace octavo {

constexpr int kTile = 8;    // output features that a kernel computes side by side: one to each lane of a vector
constexpr int kBlock = 32;  // input features that share a scale
constexpr int kRun = 64;    // neighbouring logits that a sampler looks at together

enum class WeightKind : int32_t { kU4 = 0, kS8 = 1, kF32 = 2, kF16 = 3, kBF16 = 4 };

// A weight matrix [out, in], repacked into tiles of kTile output features. out is a multiple of kTile and, for the
// quantised kinds, in is one of kBlock; what was added is zero.
//
// kU4: w = scale * q + minimum, q in 0..15, per block. Tile t, block b are 128 bytes at (t * blocks + b) * 128. Byte
//      32 * i + 4 * lane + j holds input 8 * i + j in its low and input 8 * i + 4 + j in its high half, i in 0..3.
// kS8: w = scale * q + minimum, q in -128..127, per `group` inputs (16 or 32). 256 bytes a block: byte 32 * i + 4 * lane + j
//      holds input 4 * i + j, i in 0..7.
//      Scales (and minima, where there are any) are float[tile][block][kBlock / group][kTile].
// kF32, kF16, kBF16: element [tile][input][lane].
struct Weight {
  WeightKind kind;
  int32_t group;
  int64_t out, in;
  const uint8_t* data;
  const float* scales;
  const float* minima;  // null: all zero
  const float* bias;    // float[out], null: none

  int64_t tiles() const { return out / kTile; }
  int64_t blocks() const { return in / kBlock; }
};

// Activations quantised per row and block: x = scale * q, q in -127..127. `sums` is scale * (sum of q) per 16 inputs, which
// is what a weight's minimum is multiplied by.
struct Quantised {
  int8_t* q;      // [rows][in]
  float* scales;  // [rows][blocks]
  float* sums;    // [rows][blocks][2]
};

struct AttentionShape {
  int64_t heads, kv_heads, head_dim, page_size, window;  // window 0: all positions
  float scale;
};

// One layer's pages, [page][token][kv head][head_dim] in float16.
struct Pages {
  uint16_t* keys;
  uint16_t* values;
};

struct Kernels {
  const char* name;
  bool (*supported)();

  // y[row * y_stride + feature] = x @ W.T (+ bias) (+ residual), for tiles [first, last).
  void (*linear_quantised)(const Weight&, const Quantised& x, int64_t rows, float* y, int64_t y_stride,
                           const float* residual, int64_t residual_stride, int64_t first, int64_t last);
  void (*linear_float)(const Weight&, const float* x, int64_t x_stride, int64_t rows, float* y, int64_t y_stride,
                       const float* residual, int64_t residual_stride, int64_t first, int64_t last);
  // One row of `width` floats, padded with zeros to `in`, into row `row` of the quantised activations.
  void (*quantise)(const float* x, int64_t width, int64_t in, int8_t* q, float* scales, float* sums);
  // Row `row` of a weight matrix as floats.
  void (*unpack_row)(const Weight&, int64_t row, int64_t width, float* y);
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t runs, int64_t length, float* y);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int64_t width, float* y);
  void (*rope)(const float* x, const float* cosine, const float* sine, int64_t heads, int64_t half, float* y);
  void (*activate)(int32_t function, const float* x, int64_t width, float* y);
  void (*to_half)(const float* x, int64_t count, uint16_t* y);
  // All query heads of KV head `kv_head` for one token at `position`, over the pages of its sequence.
  void (*attend)(const AttentionShape&, const Pages&, const int32_t* page_row, int64_t position, int64_t kv_head,
                 const float* queries, float* output);
  // The largest of every kRun logits, nan aside, to maxima[0, ceil(count / kRun)). Returns the largest of all, or nan
  // if any is.
  float (*run_maxima)(const float* x, int64_t count, float* maxima);
  // y = 2 ** ((x - highest) * factor), for no x above `highest`, which is finite: relative error below 2e-12, and 0 for
  // less than 2 ** -1022. Returns the sum, added in an order that depends on `count` alone.
  double (*exponentials)(const float* x, int64_t count, float highest, double factor, double* y);
};

const Kernels& portable_kernels();
#ifdef OCTAVO_X86
const Kernels& avx2_kernels();
#endif

}  // namespace octavo
