// A keyed random permutation of [0, n), evaluated one point at a time in O(1) memory: the first k
// points of it are k distinct uniform samples, drawn in any order, on any device, without a table
// of what has been drawn.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "common/philox.h"

namespace dsr {

// x = left * right_size + right is the cell of a nearly square grid that just covers [0, n). Each
// round adds a keyed hash of one coordinate to the other, which subtracting it would undo: a
// bijection of the grid. A point that lands on a cell >= n walks on along its cycle until it comes
// back inside, which makes it a bijection of [0, n). For n >= 256 there are fewer than sqrt(n) + 1
// such cells, so walks are rare.
struct Feistel {
  static constexpr int kRounds = 8;

  static constexpr uint32_t kMinSide =
      16;  // a 2 x 3 grid mixes badly, a walk within 16 x 16 does not

  uint64_t n;
  uint32_t left_size;   // ceil(sqrt(n)), at least kMinSide
  uint32_t right_size;  // ceil(n / left_size), likewise
  uint32_t key[kRounds];

  // n: 1 ... 2^62. The counter (step, layer, slot, purpose) of the keys leaves no two draws of a
  // training run alike.
  static DSR_HOST_DEVICE Feistel make(uint64_t n, uint64_t seed, uint32_t step, uint32_t layer,
                                      Purpose purpose) {
    static_assert(kRounds % 4 == 0, "Philox yields four round keys at a time");
    Feistel f;
    f.n = n;
    uint64_t root = 0;  // bit by bit, so that no two devices round a square root differently
    for (uint64_t bit = 1ull << 31; bit != 0; bit >>= 1) {
      if ((root | bit) * (root | bit) <= n) root |= bit;
    }
    uint64_t left = root * root < n ? root + 1 : root;
    if (left < kMinSide) left = kMinSide;
    const uint64_t right = (n + left - 1) / left;
    f.left_size = static_cast<uint32_t>(left);
    f.right_size = static_cast<uint32_t>(right < kMinSide ? kMinSide : right);
    for (uint32_t slot = 0; slot < kRounds / 4; ++slot) {
      const PhiloxBlock block =
          philox4x32({{step, layer, slot, static_cast<uint32_t>(purpose)}}, seed);
      for (int i = 0; i < 4; ++i) f.key[4 * slot + i] = block.word[i];
    }
    return f;
  }

  DSR_HOST_DEVICE uint64_t operator()(uint64_t x) const {
    return finish(static_cast<uint32_t>(x / right_size), static_cast<uint32_t>(x % right_size), 0);
  }

  // The rest of a permutation whose first `round` rounds are done (in step with other points).
  DSR_HOST_DEVICE uint64_t finish(uint32_t left, uint32_t right, int round) const {
    for (;; round = 0) {
      for (; round < kRounds; round += 2) two_rounds(round, left, right);
      const uint64_t x = static_cast<uint64_t>(left) * right_size + right;
      if (x < n) return x;
    }
  }

  DSR_HOST_DEVICE void two_rounds(int round, uint32_t& left, uint32_t& right) const {
    left = add_hash(left, right ^ key[round], left_size);
    right = add_hash(right, left ^ key[round + 1], right_size);
  }

 private:
  // (value + hash) mod size for value < size <= 2^31. Multiply, fold, multiply: the product with
  // size then takes the well mixed high bits into [0, size).
  static DSR_HOST_DEVICE uint32_t add_hash(uint32_t value, uint32_t hash, uint32_t size) {
    hash *= 0x85EBCA6Bu;
    hash ^= hash >> 15;
    hash *= 0xC2B2AE35u;
    const uint32_t sum = value + static_cast<uint32_t>((static_cast<uint64_t>(hash) * size) >> 32);
    return sum >= size ? sum - size : sum;
  }
};

}  // namespace dsr
