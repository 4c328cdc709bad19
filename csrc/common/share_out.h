// Sharing by largest remainder, in exact integer arithmetic: dsr_kernels/distribution.py's
// share_out for whole-number weights. The two give the same numbers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

namespace dsr {

// Shares out `total` in proportion to `weight`, within `capacity`. The shares add up to `total`
// where the capacities of positive weights hold it. A layer whose part would reach its capacity
// gets its capacity, and the same rule then shares what is left among the others. Parts are rounded
// down. The units left over go to the largest remainders, and to the first of equal ones.
inline std::vector<int64_t> share_out(int64_t total, const std::vector<int64_t>& weight,
                                      const std::vector<int64_t>& capacity) {
  using Wide = __int128;  // total * weight may exceed 64 bits
  std::vector<int64_t> share(weight.size(), 0), open(weight.size());
  std::iota(open.begin(), open.end(), 0);
  int64_t weights = std::accumulate(weight.begin(), weight.end(), int64_t{0});

  for (bool filled = true; filled && total > 0;) {
    const int64_t round_total = total, round_weights = weights;
    const auto overfull = [&](int64_t l) {
      return Wide(round_total) * weight[l] >= Wide(capacity[l]) * round_weights;
    };
    const auto rest = std::stable_partition(open.begin(), open.end(), overfull);
    for (auto l = open.begin(); l != rest; ++l) {
      share[*l] = capacity[*l];
      total -= capacity[*l];
      weights -= weight[*l];
    }
    filled = rest != open.begin();
    open.erase(open.begin(), rest);
  }
  if (total == 0 || weights == 0) return share;

  std::vector<Wide> remainder(weight.size());
  int64_t left = total;
  for (int64_t l : open) {
    share[l] = static_cast<int64_t>(Wide(total) * weight[l] / weights);
    remainder[l] = Wide(total) * weight[l] % weights;
    left -= share[l];
  }
  std::stable_sort(open.begin(), open.end(),
                   [&](int64_t a, int64_t b) { return remainder[a] > remainder[b]; });
  for (int64_t i = 0; i < left; ++i)
    ++share[open[i]];  // left < open.size(): each loses less than one
  return share;
}

}  // namespace dsr
