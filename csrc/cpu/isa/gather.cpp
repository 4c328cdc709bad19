// Forward and grad-input ("gather": every destination pixel collects what it needs from the packed
// source). Units are shared out to threads; each thread packs its own, computes it tile by tile and
// stores it.
#include "cpu/isa/ahead.h"
#include "cpu/isa/dot_products.h"
#include "cpu/isa/entry.h"
#include "cpu/isa/flush_subnormals.h"
#include "cpu/isa/gather_batch.h"
#include "cpu/isa/gather_matrix.h"
#include "cpu/isa/gather_plane.h"
#include "cpu/isa/gather_row.h"

namespace dsr::cpu::DSR_ISA {
namespace {

int64_t channel_steps(const GatherPlan& plan) {
  return ceil_div(plan.destination.channels, plan.channel_step());
}

// Where there are few units for the threads, the destination channels are shared out too, each
// thread packing for itself. Which channels are stored together decides the order in which sums are
// added up, so where sums are asked for, their parts depend on the problem alone.
template <typename S>
int64_t channel_parts(const GatherArgs<S>& args) {
  constexpr int64_t kItems = 16;
  const int64_t units = args.plan->units(args.n), threads = args.threads;
  const int64_t channels = args.plan->destination.channels, steps = channel_steps(*args.plan);
  if (args.finish.sums.partial) {
    const int64_t wanted = units >= kItems ? 1 : ceil_div(kItems, most(units, 1));
    return most(1, least(least(wanted, channels / kMaxLanes), steps));
  }
  const bool even = units % threads == 0 ? units >= threads : units >= 8 * threads;
  return even ? 1 : least(threads, steps);
}

// Where part i of the destination channels begins.
int64_t first_channel(const GatherPlan& plan, int64_t i, int64_t parts) {
  return least(plan.destination.channels,
               boundary(channel_steps(plan), i, parts) * plan.channel_step());
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

// How often a unit's inner loops call Ahead::step().
int64_t steps_of_a_unit(const GatherPlan& plan, int64_t lanes) {
  const int64_t tiles = tiles_of_a_unit(plan, lanes);
  if (plan.has_groups()) return tiles * static_cast<int64_t>(plan.groups.size() - 1);
  return tiles * plan.block.count * static_cast<int64_t>(plan.destination.classes.size()) *
         plan.rows();
}

template <typename Worker, typename S>
void run_units(const GatherArgs<S>& args) {
  const GatherPlan& plan = *args.plan;
  const int64_t share = gather_bytes(plan, sizeof(S));
  const int64_t units = plan.units(args.n), parts = channel_parts(args);
  const int64_t steps = steps_of_a_unit(plan, kLanes<S>);
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
      worker.run(unit_at(plan, args.n, item / parts), next,
                 first_channel(plan, item % parts, parts),
                 first_channel(plan, item % parts + 1, parts));
    }
    fence();
    merge(args);
  }
}

// grad-input and grad-weight: after each unit of the latter comes as large a share of the former's.
template <typename Worker, typename S>
void run_both(const GatherArgs<S>& args, const GradWeightArgs<S>& weight) {
  const GatherPlan& plan = *args.plan;
  const int64_t share = gather_bytes(plan, sizeof(S)), units = plan.units(args.n);
  const int64_t weight_share = grad_weight_bytes(*weight.plan, *weight.grad_layout, sizeof(S));
  const int64_t weight_units = weight.plan->units(weight.n);
  const int64_t nnz = weight.plan->nnz();
  const int64_t steps = steps_of_a_unit(plan, kLanes<S>);
  const int64_t parts = args.finish.sums.partial ? channel_parts(args) : 1;
#pragma omp parallel num_threads(args.threads)
  {
    const FlushSubnormals flush;
    Worker worker(args, args.workspace + thread_index() * share);
#pragma omp for schedule(static)
    for (int64_t slice = 0; slice < weight.slices; ++slice) {
      S* sums = slice_sums(weight) + slice * nnz;
      zero(sums, nnz);
      const int64_t end = boundary(weight_units, slice + 1, weight.slices);
      for (int64_t w = boundary(weight_units, slice, weight.slices); w < end; ++w) {
        const int64_t last = boundary(units, w + 1, weight_units);
        for (int64_t u = boundary(units, w, weight_units); u < last; ++u) {
          Ahead next;
          if (parts == 1 && u + 1 < units) next = Ahead(args, unit_at(plan, args.n, u + 1), steps);
          for (int64_t part = 0; part < parts; ++part)
            worker.run(unit_at(plan, args.n, u), next, first_channel(plan, part, parts),
                       first_channel(plan, part + 1, parts));
        }
        add_units(weight, weight.workspace + thread_index() * weight_share, w, w + 1, sums);
      }
    }
    fence();
    merge(args);
    add_slices(weight);
  }
}

template <typename Worker, typename S>
void run(const GatherArgs<S>& args, const GradWeightArgs<S>* weight) {
  weight ? run_both<Worker>(args, *weight) : run_units<Worker>(args);
}

template <typename Sink, typename S>
void run_lanes(const GatherArgs<S>& args, const GradWeightArgs<S>* weight) {
  if constexpr (std::is_same_v<S, float>) {
    if (args.plan->lanes == Lanes::kMatrix)
      return with_matrix_unit(*args.plan, [&](auto* unit) {
        run<GatherMatrix<Sink, std::remove_pointer_t<decltype(unit)>>>(args, weight);
      });
    if (args.plan->lanes == Lanes::kRow) return run<GatherRow<Sink>>(args, weight);
  }
  if (args.plan->lanes == Lanes::kBatch) return run<GatherBatch<Sink>>(args, weight);
  run<GatherPlane<Sink>>(args, weight);
}

template <typename S, typename Destination>
void run_sink(const GatherArgs<S>& args, const GradWeightArgs<S>* weight) {
  switch (args.finish.kind) {
    case Finish<S>::kNothing:
      return run_lanes<PlainSink<S, Destination>>(args, weight);
    case Finish<S>::kOutput:
      return run_lanes<OutputSink<S, Destination>>(args, weight);
    case Finish<S>::kInputGrad:
      return run_lanes<InputGradSink<S, Destination>>(args, weight);
  }
}

template <typename S>
void run_element(const GatherArgs<S>& args, const GradWeightArgs<S>* weight) {
  if constexpr (std::is_same_v<S, float>) {
    if (args.destination_element == Element::kBFloat16) return run_sink<S, BFloat16>(args, weight);
  }
  run_sink<S, S>(args, weight);
}

}  // namespace

template <typename S>
void gather(const GatherArgs<S>& args) {
  run_element<S>(args, nullptr);
}

template <typename S>
void backward(const GatherArgs<S>& grad_input, const GradWeightArgs<S>& weight) {
  if (weight.is_even()) return run_element<S>(grad_input, &weight);
  gather(grad_input);
  grad_weight(weight);
}

#define DSR_INSTANTIATE(S)                       \
  template void gather<S>(const GatherArgs<S>&); \
  template void backward<S>(const GatherArgs<S>&, const GradWeightArgs<S>&);
DSR_INSTANTIATE(float)
DSR_INSTANTIATE(double)

}  // namespace dsr::cpu::DSR_ISA
