// Distinct uniform samples in ascending order: of a whole layer (initial patterns) and of its free
// positions (growth).
#pragma once

#include <cstdint>
#include <vector>

#include "common/feistel.h"
#include "common/status.h"

namespace dsr::cpu {

// Memory of sample_sorted, kept by the caller so that a parallel loop allocates nothing inside.
struct SampleBuffers {
  std::vector<uint64_t> ranks;    // the result is its first `count` entries
  std::vector<uint64_t> scratch;  // the other half of the radix sort's ping-pong

  void reserve(int64_t count) {
    if (static_cast<int64_t>(ranks.size()) < count) {
      ranks.resize(count);
      scratch.resize(count);
    }
  }
};

// The first `count` points of the permutation, ascending. buffers.reserve(count) must have been
// called.
const uint64_t* sample_sorted(const Feistel& permutation, int64_t count, SampleBuffers& buffers);

// Fills a CSR pattern with `nnz` distinct uniform positions of rows x row_length (which may exceed
// 2^31).
Status sample_pattern(int64_t rows, int64_t row_length, int64_t nnz, uint64_t seed,
                      int32_t* crow,  // [rows + 1]
                      int32_t* col);  // [nnz]

}  // namespace dsr::cpu
