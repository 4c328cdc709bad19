// Forward and grad-input ("gather": every destination pixel collects what it needs from the packed
// source). Units are shared out to threads; each thread packs its own, computes it tile by tile and
// stores it.
#include "cpu/isa/ahead.h"
#include "cpu/isa/entry.h"
#include "cpu/isa/gather_batch.h"
#include "cpu/isa/gather_plane.h"
#include "cpu/isa/gather_row.h"

namespace dsr::cpu::DSR_ISA {
namespace {

// Where there are few units for the threads, the destination channels are shared out too, each
// thread packing for itself.
int64_t channel_parts(int64_t units, int threads, int64_t channels) {
  const bool even = units % threads == 0 ? units >= threads : units >= 8 * threads;
  return even ? 1 : least(threads, channels);
}

// Adds up what the units left: every thread of the team takes a share of the channels.
template <typename S>
void merge(const GatherArgs<S>& args) {
  if (!args.finish.sums.partial) return;
  const GatherPlan& plan = *args.plan;
  const DestinationClass& k = plan.destination.classes[0];  // of an output there is no other
  const auto pixels_of = [&](int64_t u) {
    const Unit unit = unit_at(plan, args.n, u);
    return unit.images * unit.rows * k.cols;
  };
#pragma omp for schedule(static)
  for (int64_t d = 0; d < plan.destination.channels; ++d) {
    if (args.finish.kind == Finish<S>::kOutput) {
      merge_moments(args, d, pixels_of);
    } else {
      merge_sums(args, d);
    }
  }
}

template <typename Worker, typename S>
void run_units(const GatherArgs<S>& args) {
  const GatherPlan& plan = *args.plan;
  const int64_t share = gather_bytes(plan, sizeof(S));
  const int64_t units = plan.units(args.n), channels = plan.destination.channels;
  const int64_t parts = channel_parts(units, args.threads, channels);
  const int64_t steps = tiles_of_a_unit(plan, kLanes<S>) * plan.block.count *
                        static_cast<int64_t>(plan.destination.classes.size()) * channels;
#pragma omp parallel num_threads(args.threads)
  {
    const FlushSubnormals flush;
    Worker worker(args, args.workspace + thread_index() * share);
    // Static, so that a thread's next item is the one that follows.
#pragma omp for schedule(static)
    for (int64_t item = 0; item < units * parts; ++item) {
      Ahead next;
      if (parts == 1 && item + 1 < units)
        next = Ahead(args, unit_at(plan, args.n, item + 1), steps);
      worker.run(unit_at(plan, args.n, item / parts), next, boundary(channels, item % parts, parts),
                 boundary(channels, item % parts + 1, parts));
    }
    fence();
    merge(args);
  }
}

template <typename Sink>
void run_lanes(const GatherArgs<typename Sink::Scalar>& args) {
  if constexpr (std::is_same_v<typename Sink::Scalar, float>) {
    if (args.plan->lanes == Lanes::kRow) return run_units<GatherRow<Sink>>(args);
  }
  if (args.plan->lanes == Lanes::kBatch) return run_units<GatherBatch<Sink>>(args);
  run_units<GatherPlane<Sink>>(args);
}

template <typename S, typename Destination>
void run_sink(const GatherArgs<S>& args) {
  switch (args.finish.kind) {
    case Finish<S>::kNothing:
      return run_lanes<PlainSink<S, Destination>>(args);
    case Finish<S>::kOutput:
      return run_lanes<OutputSink<S, Destination>>(args);
    case Finish<S>::kInputGrad:
      return run_lanes<InputGradSink<S, Destination>>(args);
  }
}

}  // namespace

template <>
void gather<float>(const GatherArgs<float>& args) {
  if (args.destination_element == Element::kBFloat16) return run_sink<float, BFloat16>(args);
  run_sink<float, float>(args);
}

template <>
void gather<double>(const GatherArgs<double>& args) {
  run_sink<double, double>(args);
}

}  // namespace dsr::cpu::DSR_ISA
