// Forward and grad-input: units are shared out to threads, each packs its own, computes and stores.
#include "cpu/isa/entry.h"
#include "cpu/isa/gather_batch.h"
#include "cpu/isa/gather_plane.h"
#include "cpu/isa/gather_row.h"

namespace dsr::cpu::DSR_ISA {
namespace {

template <typename S>
constexpr auto kTiles =
    TileTable<TileFunction<S>, kTileVectors>::template of<TileKernels<S>::template Gather>();
constexpr auto kRowTiles = RowTileTable<RowTileFunction>::of<RowGatherKernel>();

// Where there are few units for the threads, the destination channels are shared out too, each
// thread packing for itself.
int64_t channel_parts(int64_t units, int threads, int64_t channels) {
  const bool even = units % threads == 0 ? units >= threads : units >= 8 * threads;
  return even ? 1 : least(threads, channels);
}

template <typename Worker, typename Source, typename S, typename Tiles>
void run_units(const GatherArgs<S>& args, const Tiles& tiles) {
  const GatherPlan& plan = *args.plan;
  const int64_t share = gather_bytes(plan, sizeof(S));
  const int64_t units = plan.units(args.n), channels = plan.destination_channels;
  const int64_t parts = channel_parts(units, args.threads, channels);
  const int64_t steps = tiles_of_a_unit(plan, kLanes<S>) * plan.blocks *
                        static_cast<int64_t>(plan.classes.size()) * channels;
#pragma omp parallel num_threads(args.threads)
  {
    const FlushSubnormals flush;
    Worker worker(args, tiles, args.workspace + thread_index() * share);
    // Static, so that a thread's next item is the one that follows.
#pragma omp for schedule(static)
    for (int64_t item = 0; item < units * parts; ++item) {
      Ahead next;
      if (parts == 1 && item + 1 < units)
        next = Ahead(static_cast<const Source*>(args.source), args.source_strides, plan.source,
                     unit_at(plan, args.n, item + 1), steps);
      worker.run(unit_at(plan, args.n, item / parts), next, part(channels, item % parts, parts),
                 part(channels, item % parts + 1, parts));
    }
    fence();
  }
}

template <typename S, typename Source, typename Destination>
void run_lanes(const GatherArgs<S>& args) {
  using Tiles = decltype(kTiles<S>);
  if constexpr (std::is_same_v<S, float>) {
    if (args.plan->lanes == Lanes::kRow)
      return run_units<GatherRow<Source, Destination, decltype(kRowTiles)>, Source>(args,
                                                                                    kRowTiles);
  }
  if (args.plan->lanes == Lanes::kBatch) {
    run_units<GatherBatch<S, Source, Destination, Tiles>, Source>(args, kTiles<S>);
  } else {
    run_units<GatherPlane<S, Source, Destination, Tiles>, Source>(args, kTiles<S>);
  }
}

}  // namespace

template <>
void gather<float>(const GatherArgs<float>& args) {
  const bool low_in = args.source_element == Element::kBFloat16;
  const bool low_out = args.destination_element == Element::kBFloat16;
  if (low_in && low_out) return run_lanes<float, BFloat16, BFloat16>(args);
  if (low_in) return run_lanes<float, BFloat16, float>(args);
  if (low_out) return run_lanes<float, float, BFloat16>(args);
  run_lanes<float, float, float>(args);
}

template <>
void gather<double>(const GatherArgs<double>& args) {
  run_lanes<double, double, double>(args);
}

}  // namespace dsr::cpu::DSR_ISA
