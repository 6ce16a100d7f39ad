// What attention will read next. Included by the kernels alone.

#pragma once

#include <algorithm>

#include "pages.h"

namespace octavo {
namespace OCTAVO_ISA {

constexpr int64_t kVectors = 4;                // of positions in a chunk
constexpr int64_t kChunk = kVectors * kLanes;  // positions between two rescalings of the softmax

struct Work {  // positions [from, end) of a KV head; none where end is 0
  const int32_t* page_row;
  int64_t kv_head, from, end;
};

// Cache lines that will soon be read. Pages lie anywhere, so that the hardware cannot guess; all at once they would
// wait for each other, and the loop for them: loops ask for some with every turn.
class Ahead {
 public:
  // Keys, or values, of the first chunk of some work.
  template <typename T>
  void begin(bool keys, const KvLayer& kv, const Work& work) {
    const int64_t size = kv.page_size, chunk = work.from / kChunk * kChunk, last = std::min(chunk + kChunk, work.end);
    at_ = count_ = line_ = 0;
    bytes_ = size * (keys ? kv.head_dim : kv.padded_dim()) * static_cast<int64_t>(sizeof(T));
    for (int64_t p = chunk / size; p * size < last; p++) {
      const Page<T> page = page_of<T>(kv, work.page_row[p], work.kv_head);
      pages_[count_++] = reinterpret_cast<const char*>(keys ? page.keys : page.values);
    }
  }
  // So many lines a turn as are asked for in that many turns.
  void spread(int64_t turns) { share_ = ((bytes_ + 63) / 64 * count_ + turns - 1) / turns; }

  void some() {
    for (int64_t i = 0; i < share_ && at_ < count_; i++) {
      __builtin_prefetch(pages_[at_] + line_);
      line_ += 64;
      if (line_ >= bytes_) line_ = 0, at_++;
    }
  }

 private:
  const char* pages_[kChunk + 1];
  int64_t at_ = 0, count_ = 0, line_ = 0, bytes_ = 0, share_ = 0;
};

}  // namespace OCTAVO_ISA
}  // namespace octavo
