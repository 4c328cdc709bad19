#include "cpu/rewire/sample.h"

#include <algorithm>
#include <array>
#include <limits>
#include <string>

namespace dsr::cpu {
namespace {

// 2048 counters stay in the first-level cache; 22-bit layers take two passes.
constexpr int kDigitBits = 11;
constexpr int kDigits = 1 << kDigitBits;

// Least significant digit first; only the digits that values < `bound` can have.
void radix_sort(uint64_t bound, int64_t count, SampleBuffers& buffers) {
  for (int shift = 0; shift < 64 && (bound - 1) >> shift != 0; shift += kDigitBits) {
    std::array<int64_t, kDigits> start{};
    const uint64_t* from = buffers.ranks.data();
    uint64_t* to = buffers.scratch.data();
    for (int64_t i = 0; i < count; ++i) ++start[(from[i] >> shift) & (kDigits - 1)];
    int64_t total = 0;
    for (int64_t& s : start) {
      const int64_t size = s;
      s = total;
      total += size;
    }
    for (int64_t i = 0; i < count; ++i) to[start[(from[i] >> shift) & (kDigits - 1)]++] = from[i];
    buffers.ranks.swap(buffers.scratch);
  }
}

// points[i] = permutation(i). Several points go through the rounds in step: one alone would leave
// the multipliers idle most of the time.
void permute_first(const Feistel& permutation, int64_t count, uint64_t* points) {
  constexpr int kLanes = 8;
  uint32_t left[kLanes], right[kLanes];
  uint32_t next_left = 0, next_right = 0;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      left[lane] = next_left;
      right[lane] = next_right;
      if (++next_right == permutation.right_size) {
        next_right = 0;
        ++next_left;
      }
    }
    for (int round = 0; round < Feistel::kRounds; round += 2) {
      for (int lane = 0; lane < kLanes; ++lane) {
        permutation.two_rounds(round, left[lane], right[lane]);
      }
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      points[i + lane] = permutation.finish(left[lane], right[lane], Feistel::kRounds);
    }
  }
  for (; i < count; ++i) points[i] = permutation(static_cast<uint64_t>(i));
}

}  // namespace

const uint64_t* sample_sorted(const Feistel& permutation, int64_t count, SampleBuffers& buffers) {
  permute_first(permutation, count, buffers.ranks.data());
  if (count < kDigits / 8) {  // clearing the counters would cost more than sorting
    std::sort(buffers.ranks.begin(), buffers.ranks.begin() + count);
  } else {
    radix_sort(permutation.n, count, buffers);
  }
  return buffers.ranks.data();
}

Status sample_pattern(int64_t rows, int64_t row_length, int64_t nnz, uint64_t seed, int32_t* crow,
                      int32_t* col) {
  constexpr int64_t kMaxIndex = std::numeric_limits<int32_t>::max();
  if (rows < 0 || rows >= kMaxIndex || row_length < 0 || row_length > kMaxIndex) {
    return Status::error("sample_pattern: expected rows and row_length in [0, 2^31), got " +
                         std::to_string(rows) + " and " + std::to_string(row_length));
  }
  const int64_t positions = rows * row_length;  // < 2^62
  if (nnz < 0 || nnz > positions || nnz > kMaxIndex) {
    return Status::error("sample_pattern: expected nnz in [0, " +
                         std::to_string(std::min(positions, kMaxIndex)) + "] for " +
                         std::to_string(rows) + " x " + std::to_string(row_length) + ", got " +
                         std::to_string(nnz));
  }
  SampleBuffers buffers;
  buffers.reserve(nnz);
  const uint64_t* position = nullptr;
  if (nnz > 0) {
    const Feistel permutation =
        Feistel::make(static_cast<uint64_t>(positions), seed, 0, 0, Purpose::kInitialPattern);
    position = sample_sorted(permutation, nnz, buffers);
  }
  int64_t i = 0;
  crow[0] = 0;
  for (int64_t row = 0; row < rows; ++row) {
    const uint64_t first = static_cast<uint64_t>(row * row_length);
    for (; i < nnz && position[i] - first < static_cast<uint64_t>(row_length); ++i) {
      col[i] = static_cast<int32_t>(position[i] - first);
    }
    crow[row + 1] = static_cast<int32_t>(i);
  }
  return Status::ok();
}

}  // namespace dsr::cpu
