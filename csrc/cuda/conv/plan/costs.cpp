#include "cuda/conv/plan/costs.h"

#include <algorithm>

#include "cuda/conv/plan/arithmetic.h"

namespace dsr::cuda {

std::vector<int64_t> distinct(const std::vector<int64_t>& numbers) {
  std::vector<int64_t> found = numbers;
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

std::vector<int64_t> channel_blocks(int64_t channels, int64_t plane, int64_t shared) {
  const int64_t most = std::min(shared / kSlabs / plane, channels);
  if (most < 1) return {};
  const int64_t fewest = ceil_div(channels, most);
  std::vector<int64_t> found;
  for (const int64_t blocks :
       distinct({fewest, std::max<int64_t>(fewest, 2), std::max<int64_t>(fewest, 4)})) {
    const int64_t even = ceil_div(channels, blocks);
    const int64_t wide = ceil_div(even, kFillWarps) * kFillWarps;  // whole rounds of the warps
    found.push_back(std::min(wide, most));
  }
  return found;
}

}  // namespace dsr::cuda
