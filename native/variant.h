// The kernels of one instruction set that make up its table (kernels.cpp).

#pragma once

#include "kernels.h"

namespace octavo {
namespace OCTAVO_ISA {

// quantised.cpp
void linear_quantised(const Weight&, const Records& activations, int64_t rows, const Output&, Range tiles);
void linear_gated(const Weight&, const Records& activations, int64_t rows, Function, const Records& out, Range blocks);

// floats.cpp
void linear_float(const Weight&, const float* x, int64_t x_stride, int64_t rows, const Output&, Range tiles);

// unpack.cpp
void unpack_row(const Weight&, int64_t row, int64_t width, float* y);

// quantise.cpp
void quantise(const Records&, const float* x, int64_t width, int64_t row, int64_t block);

// rows.cpp
void rms_norm(const float* x, const float* weight, float eps, int64_t runs, int64_t length, float* y);
void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t width, float* y);
void rope(const float* x, const float* cosine, const float* sine, int64_t heads, int64_t half, float* y);
void activate(Function, const float* x, const float* gate, int64_t width, float* y);

// store.cpp
void store_kv(const KvLayer&, const float* keys, const float* values, int64_t slot);
void fetch_slot(const KvLayer&, int64_t slot);

// attention.cpp
void attend(const KvLayer&, const Tokens&, int64_t first, int64_t last, const Tokens* then, int64_t then_first);
void attend_span(const KvLayer&, const Tokens& token, int64_t kv_head, int64_t span, float* part);
void fold_spans(const KvLayer&, const Tokens& token, int64_t kv_head, float* parts, int64_t spans, int64_t stride);

// logits.cpp
float run_maxima(const float* x, int64_t count, float* maxima);
double exponentials(const float* x, int64_t count, float highest, double factor, double* y);

// peaks.cpp
int64_t peak_float(int64_t rounds);
int64_t peak_integer(int64_t rounds);
float read_all(const float* data, int64_t count);

}  // namespace OCTAVO_ISA
}  // namespace octavo
