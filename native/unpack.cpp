// Rows of a weight matrix as floats.

#include "dot.h"

namespace octavo {
namespace OCTAVO_ISA {

void unpack_row(const Weight& w, int64_t row, int64_t width, float* y) {
  const int64_t tile = row / kLanes, lane = row % kLanes;
  if (!w.quantised()) {
    for (int64_t k = 0; k < width; k++) {
      const int64_t element = (tile * w.in + k) * kLanes + lane;
      if (w.kind == WeightKind::kF32) {
        std::memcpy(&y[k], w.data + 4 * element, 4);
      } else {
        uint16_t half;
        std::memcpy(&half, w.data + 2 * element, 2);
        const uint32_t bits = static_cast<uint32_t>(half) << 16;
        if (w.kind == WeightKind::kF16)
          y[k] = half_to_float(half);
        else
          std::memcpy(&y[k], &bits, 4);
      }
    }
    return;
  }
  const int groups = static_cast<int>(kBlock / w.group);
  for (int64_t k = 0; k < width; k++) {
    const uint8_t* data = w.data + (tile * w.blocks() + k / kBlock) * w.block_bytes();
    const uint8_t* scales = data + w.integer_bytes();
    const int offset = static_cast<int>(k % kBlock);
    const auto scale = [&](int index) {
      return (w.half_scales ? load_scale<true>(scales, index) : load_scale<false>(scales, index))[lane];
    };
    float q;
    if (w.kind == WeightKind::kU4) {
      const int i = offset / 16 * 2 + offset % 8 / 4;
      const uint8_t both = data[4 * (kLanes * i + lane) + offset % 4];
      q = static_cast<float>(offset % 16 < 8 ? both & 15 : both >> 4);
    } else {
      const int64_t index = pairs_index(offset);
      q = static_cast<float>(static_cast<int8_t>(data[2 * (kLanes * (index / 2) + lane) + index % 2]));
    }
    y[k] = scale(offset / w.group) * q + (w.minima ? scale(groups) : 0.0f);
  }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
