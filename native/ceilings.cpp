#include "ceilings.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <vector>

#include "threads.h"

namespace octavo {

constexpr int kTries = 5;
constexpr int64_t kFloats = int64_t{64} << 20;  // 256 MiB in all: far more than the caches hold

// The best of some tries of work(thread) on every thread, in seconds.
template <typename Work>
static double best_seconds(Team& team, Work work) {
  double best = 1e30;
  for (int attempt = 0; attempt < kTries; attempt++) {
    const auto start = std::chrono::steady_clock::now();
    team.run(work);
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

Ceilings measure_ceilings(const Kernels& kernels, int threads) {
  Team team(threads);
  const std::unique_ptr<float[]> memory(new float[kFloats]);
  std::fill(memory.get(), memory.get() + kFloats, 1.0f);
  const int64_t share = kFloats / threads;
  std::vector<float> sums(threads);
  const double read =
      best_seconds(team, [&](int thread) { sums[thread] = kernels.read_all(memory.get() + thread * share, share); });
  std::atomic<int64_t> operations{0};
  const auto peak = [&](int64_t (*loop)(int64_t)) {
    operations = 0;
    const double seconds = best_seconds(team, [&](int) { operations += loop(1'000'000); });
    return static_cast<double>(operations) / kTries / seconds;
  };
  return {static_cast<double>(threads) * share * sizeof(float) / read, peak(kernels.peak_float),
          peak(kernels.peak_integer)};
}

}  // namespace octavo
