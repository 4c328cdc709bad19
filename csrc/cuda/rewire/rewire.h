// One rewire on a GPU, bit for bit the CPU's (csrc/cpu/rewire.h): the same entries are pruned, the
// same positions grow, and a plan reports the same.
//
//   rewire_open      uploads where the layers' arrays are, checks them, finds their largest entries
//   rewire_prune_*   decides what is pruned; raises what rewire_open's kernels have found wrong
//   rewire_grow_*    decides how many grow in which layer: on the host, in
//                    common/rewire/decide.h
//   rewire_apply     samples or checks ranks, merges, and writes the new patterns and arrays
//
// Every kernel works on all layers at once. The entries of each layer are split into chunks of
// RewireConfig::kChunk, one for a block, and so are its rows and its grown positions; a chunk never
// spans two layers, so fifty small layers and one large one both fill the device:
//
//   chunk   0 1 2 3 | 4 | 5 6 | ...     layer = the last one whose first chunk is not above the
//   layer      0      1    2            block's number (binary search in [layers + 1] starts)
//
// Selection. The sign-free bits of a magnitude (as a double, which holds every float exactly) sort
// as the magnitude does. Eight passes (five if all are floats) count one digit of 8 bits each among
// the entries that agree with the threshold's higher digits; after each a single block picks the
// digit that holds the wanted rank. Where each layer has a threshold of its own, the same passes
// find all of them: every layer is a scope, with a histogram and a block that picks; otherwise all
// layers are one. Nothing of this passes through the host. Then each chunk counts what is below and
// what is at the threshold. Scanned over the chunks of a layer, these counts say how many survivors
// lie before any entry, and which ties are pruned, so that rewire_apply need not scan entries
// again.
//
// Growth. The ranks of the grown positions among the free ones (Feistel, or given ones, which are
// checked) are sorted within each layer, least significant digit first; as chunks do not span
// layers, neither does the sort, and keys hold ranks alone. Given ranks come out as they went in,
// and where all are given nothing is sorted. Entry j at position k has k - j free positions before
// it, hence its new index is (survivors before it) + (grown ranks < k - j). The free position of
// rank r lies in the last row that starts with at most r free positions before it, and behind every
// entry there with k - j <= r. Both are binary searches; every entry and every grown position is on
// its own.
//
// Only integers are added up atomically, so results do not depend on the order of threads. The host
// waits for the device twice: for the counts (once more where capacity limits what is pruned), and
// for whether every layer could be merged. Decisions are the host's, so a rewire cannot be
// part of a CUDA graph. Memory is the caller's: 4 bytes for each non-zero and 1 for each 128, 17
// for each grown position, up to 4 KiB per layer.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "common/rewire/plan.h"
#include "common/status.h"
#include "cuda/device.h"
#include "cuda/rewire/tables.h"

namespace dsr::cuda {

struct RewirePlan : dsr::RewirePlan {  // addresses of layers and outputs are the device's
  Queue queue;
  // Device memory that lives as long as the plan, aligned to Carver::kAlignment.
  std::function<void*(size_t bytes)> allocate;

  RewireTables device;               // addresses in memory of `allocate`
  std::vector<unsigned char> image;  // the host's copy of what is uploaded and comes back
  RewireTables host;                 // addresses in `image`
  bool counted = false;              // a rewire_prune_* has succeeded
};

// Stops with the first layer that does not fit its shape. NaN or infinite scores and inconsistent
// patterns are found later: rewire_prune_* stops with the first of them.
Status rewire_open(RewirePlan& plan);

// Prunes |score| < threshold, but never a layer's largest entry. Where growth could not give as
// many back, prunes only the plan.total_capacity smallest.
Status rewire_prune_below(RewirePlan& plan, double threshold);

// Prunes exactly min(count, plan.prunable) entries, and no more than plan.total_capacity if as many
// are to be regrown: the smallest magnitudes of all layers together, of equal ones the later (by
// layer, then by position).
Status rewire_prune_smallest(RewirePlan& plan, int64_t count, bool regrown);

// Prunes exactly counts[l] entries of each layer, but never its largest one: the smallest
// magnitudes, of equal ones the later.
Status rewire_prune_smallest_each(RewirePlan& plan, const std::vector<int64_t>& counts);

// Grows at the given ranks, or at positions sampled uniformly outside the old support, and merges.
// `step` numbers the rewires of a run. Outputs are complete, or the error is known, when this
// returns.
Status rewire_apply(RewirePlan& plan, uint64_t seed, uint32_t step,
                    const std::vector<RewireOutput>& outputs);

}  // namespace dsr::cuda
