#include <algorithm>
#include <utility>

#include "common/rewire/errors.h"
#include "cuda/rewire/launches.h"
#include "cuda/rewire/merge.cuh"
#include "cuda/rewire/rewire.h"
#include "cuda/rewire/sample.cuh"

namespace dsr::cuda {
namespace {

// Memory of one rewire_apply.
struct Moves {
  MoveTables device;                 // addresses in memory of the plan's
  std::vector<unsigned char> image;  // the host's copy of what is uploaded
  MoveTables host;                   // addresses in `image`
  int64_t most_free = 1;             // free positions of the largest layer that grows
  bool sampled = false;              // some ranks are not given, and so not in order

  unsigned rank_chunks() const { return chunk_total(host.rank_chunks, host.layers); }
};

ArrayMove move_of(const RewireArray& array) {
  const int64_t size = array.item_size;
  const auto addresses =
      reinterpret_cast<intptr_t>(array.from) | reinterpret_cast<intptr_t>(array.to);
  const bool is_unit = size == 1 || size == 2 || size == 4 || size == 8;
  if (is_unit && addresses % size == 0) return {array.from, array.to, size, 1};
  const int64_t unit = (addresses | size) % 4 == 0 ? 4 : 1;
  return {array.from, array.to, unit, size / unit};
}

void describe_moves(const RewirePlan& plan, uint64_t seed, uint32_t step,
                    const std::vector<RewireOutput>& outputs, Moves& moves) {
  int64_t ranks = 0, arrays = 0;
  for (int l = 0; l < moves.host.layers; ++l) {
    const RewireLayer& layer = plan.layers[l];
    const RewireDecision& decision = plan.decisions[l];
    const int64_t free = layer.positions() - layer.nnz;
    LayerMove& move = moves.host.moves[l];
    move = {};
    move.ranks = outputs[l].ranks;
    if (decision.grown > 0) moves.most_free = std::max(moves.most_free, free);
    if (decision.grown > 0 && move.ranks == nullptr) {
      moves.sampled = true;
      move.growth =
          Feistel::make(static_cast<uint64_t>(free), seed, step, layer.stream, Purpose::kGrowth);
    }
    move.kept_ties = static_cast<int64_t>(plan.host.findings[l].equal) - decision.ties;
    move.kept = layer.nnz - decision.pruned;
    move.grown = decision.grown;
    move.first_rank = ranks;
    move.crow = outputs[l].crow;
    move.col = outputs[l].col;
    move.first_array = arrays;
    move.arrays = static_cast<int64_t>(outputs[l].arrays.size());
    for (const RewireArray& array : outputs[l].arrays) {
      moves.host.arrays[arrays++] = move_of(array);
    }
    ranks += decision.grown;
  }
  count_chunks(moves.host.rank_chunks, moves.host.layers,
               [&](int l) { return plan.decisions[l].grown; });
}

// Fills the tables, in host and device memory.
Status upload_moves(const RewirePlan& plan, uint64_t seed, uint32_t step,
                    const std::vector<RewireOutput>& outputs, Moves& moves) {
  int64_t arrays = 0, grown = 0, entries = 0;
  for (size_t l = 0; l < plan.layers.size(); ++l) {
    arrays += static_cast<int64_t>(outputs[l].arrays.size());
    grown += plan.decisions[l].grown;
    entries += plan.layers[l].nnz;
  }
  moves.host.layers = moves.device.layers = plan.host.layers;
  Carver size;
  moves.host.carve(size, arrays);
  moves.image.resize(size.bytes());
  Carver image(moves.image.data());
  moves.host.carve(image, arrays);
  describe_moves(plan, seed, step, outputs, moves);
  moves.device.carve_scratch(size, grown, moves.rank_chunks(), entries);
  Carver memory(plan.allocate(size.bytes()));
  moves.device.carve(memory, arrays);
  moves.device.carve_scratch(memory, grown, moves.rank_chunks(), entries);
  return copy_to_device(plan.queue, moves.device.moves, moves.image.data(), moves.image.size());
}

// The ranks of what grows, ascending in each layer; `sorted` is where they end up.
Status sort_ranks(const RewirePlan& plan, const Moves& moves, const Word*& sorted) {
  Word *from = moves.device.ranks, *to = moves.device.other_ranks;
  sorted = from;
  if (moves.rank_chunks() == 0) return Status::ok();
  Launches launches(plan);
  DSR_LAUNCH((fill_ranks_kernel), moves.rank_chunks(), RewireConfig::kThreads, 0, plan.queue.stream,
             plan.device, moves.device, from);
  launches.check("sample");
  for (int shift = 0; moves.sampled && shift < 64 && (moves.most_free - 1) >> shift != 0;
       shift += RewireConfig::kDigitBits) {
    DSR_LAUNCH((count_rank_digits_kernel), moves.rank_chunks(), RewireConfig::kThreads, 0,
               plan.queue.stream, moves.device, from, shift);
    launches.check("count the digits of ranks");
    DSR_LAUNCH((scan_rank_digits_kernel), plan.host.layers, RewireConfig::kThreads, 0,
               plan.queue.stream, moves.device);
    launches.check("scan the digits of ranks");
    DSR_LAUNCH((scatter_ranks_kernel), moves.rank_chunks(), RewireConfig::kThreads, 0,
               plan.queue.stream, moves.device, from, to, shift);
    launches.check("sort by a digit of ranks");
    std::swap(from, to);
  }
  sorted = from;
  return launches.status;
}

Status merge(const RewirePlan& plan, const Moves& moves, const Word* ranks) {
  Launches launches(plan);
  const unsigned entry_chunks = chunk_total(plan.host.entry_chunks, plan.host.layers);
  const unsigned row_chunks = chunk_total(plan.host.row_chunks, plan.host.layers);
  if (entry_chunks > 0) {
    DSR_LAUNCH((move_survivors_kernel), entry_chunks, RewireConfig::kThreads, 0, plan.queue.stream,
               plan.device, moves.device, ranks);
    launches.check("move the survivors");
  }
  if (moves.rank_chunks() > 0) {
    DSR_LAUNCH((place_grown_kernel), moves.rank_chunks(), RewireConfig::kThreads, 0,
               plan.queue.stream, plan.device, moves.device, ranks);
    launches.check("place what grows");
  }
  if (row_chunks > 0) {
    DSR_LAUNCH((write_crow_kernel), row_chunks, RewireConfig::kThreads, 0, plan.queue.stream,
               plan.device, moves.device, ranks);
    launches.check("write crow_indices");
  }
  return launches.status;
}

// What was wrong, if anything. Then the plan can still be applied to other outputs.
Status take_errors(RewirePlan& plan) {
  Status status = Status::ok();
  for (int l = plan.host.layers; l-- > 0;) {
    LayerFindings& found = plan.host.findings[l];
    if (found.unplaced != 0) status = Status::error(unsorted_or_changed(plan.layers[l]));
    if (found.misranked != 0) status = Status::error(bad_ranks(plan.layers[l]));
    found.unplaced = found.misranked = 0;
  }
  if (status.is_ok()) return status;
  const Status copied = copy_to_device(plan.queue, plan.device.findings, plan.host.findings,
                                       plan.host.layers * sizeof(LayerFindings));
  return copied.is_ok() ? status : copied;
}

}  // namespace

Status rewire_apply(RewirePlan& plan, uint64_t seed, uint32_t step,
                    const std::vector<RewireOutput>& outputs) {
  const std::string error = check_outputs(plan, outputs);
  if (!error.empty()) return Status::error(error);
  if (!plan.counted) return Status::error("apply: expected a prune_* before it");

  const DeviceGuard guard(plan.queue.device);
  Moves moves;
  const Word* ranks = nullptr;
  Status status = upload_moves(plan, seed, step, outputs, moves);
  if (status.is_ok()) status = sort_ranks(plan, moves, ranks);
  if (status.is_ok()) status = merge(plan, moves, ranks);
  if (status.is_ok()) status = fetch_findings(plan);
  return status.is_ok() ? take_errors(plan) : status;
}

}  // namespace dsr::cuda
