// Loops that do nothing but what a core is fastest at: what the kernels are held against.

#include "kernels.h"
#include "variant.h"
#include "vectors.h"

namespace octavo {
namespace OCTAVO_ISA {

constexpr int kChains = 12;  // more than latency times units of any core, and they stay in registers

int64_t peak_float(int64_t rounds) {
  F total[kChains];
  OCTAVO_EACH(i, kChains) total[i] = splat(static_cast<float>(i));
  const F factor = splat(0.5f);
  for (int64_t round = 0; round < rounds; round++)
    OCTAVO_EACH(i, kChains) {
      total[i] = fma(total[i], factor, factor);
#if defined(__AVX512F__)
      asm volatile("" : "+v"(total[i]));
#elif defined(__AVX2__)
      asm volatile("" : "+x"(total[i]));
#else
      asm volatile("" : "+m"(total[i]));
#endif
    }
  return rounds * kChains * 2 * kLanes;
}

// The multiplication of the 4-bit kernel: bytes by bytes, neighbours added.
int64_t peak_integer(int64_t rounds) {
#if defined(__AVX512VNNI__)
  __m512i total[kChains];
  const __m512i byte = _mm512_set1_epi8(1);
  OCTAVO_EACH(i, kChains) total[i] = byte;
  for (int64_t round = 0; round < rounds; round++)
    OCTAVO_EACH(i, kChains) {
      total[i] = _mm512_dpbusd_epi32(total[i], byte, byte);
      asm volatile("" : "+v"(total[i]));
    }
  return rounds * kChains * 128;
#elif defined(__AVX2__)
  __m256i byte[kChains];
  OCTAVO_EACH(i, kChains) byte[i] = _mm256_set1_epi8(1);
  for (int64_t round = 0; round < rounds; round++)
    OCTAVO_EACH(i, kChains) {
      byte[i] = _mm256_maddubs_epi16(byte[i], byte[i]);
      asm volatile("" : "+x"(byte[i]));
    }
  return rounds * kChains * 64;
#else
  return peak_float(rounds);  // nothing faster is known of this machine
#endif
}

float read_all(const float* data, int64_t count) {
  // Four streams at once: the hardware fetches further ahead than for one.
  F total[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
  const int64_t quarter = count / 4;
  for (int64_t i = 0; i + 2 * kLanes <= quarter; i += 2 * kLanes)
    OCTAVO_EACH(j, 4) total[j] += load(data + j * quarter + i) + load(data + j * quarter + i + kLanes);
  return sum((total[0] + total[1]) + (total[2] + total[3]));
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
