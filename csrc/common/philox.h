// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random
// numbers: as easy as 1, 2, 3" (SC 2011). A pure function of (counter, key): the same on every
// thread, rank and device.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace dsr {

struct PhiloxBlock {
  uint32_t word[4];
};

// What a random number is for. Part of the counter, so that two purposes never share a stream.
enum class Purpose : uint32_t { kInitialPattern = 0, kGrowth = 1 };

DSR_HOST_DEVICE PhiloxBlock philox4x32(PhiloxBlock counter, uint64_t key) {
  uint32_t key0 = static_cast<uint32_t>(key);
  uint32_t key1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = 0xD2511F53ull * counter.word[0];
    const uint64_t product1 = 0xCD9E8D57ull * counter.word[2];
    counter = {{static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0,
                static_cast<uint32_t>(product1),
                static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1,
                static_cast<uint32_t>(product0)}};
    key0 += 0x9E3779B9u;  // the golden ratio and sqrt(3) - 1: Weyl sequences step the key
    key1 += 0xBB67AE85u;
  }
  return counter;
}

}  // namespace dsr
