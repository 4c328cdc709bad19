// Grad-weight at the non-zeros only: grad_values[k] = sum over m of grad[row(k), m] *
// packed[offset(k) + m].
//
// A tile of T vectors of the packed gradient stays in registers while the non-zeros of its row
// stream past. Each leaves one vector of partial sums; a full set of them is reduced at once.
// Lanes on the margin multiply a zero gradient with whatever the packed source holds there, so an
// infinite or NaN input may also show as NaN in gradients of other taps of its channel.
// The batch is summed in a fixed number of slices, added up in order: no atomics, and the same
// result for any number of threads.
#include "cpu/isa/entry.h"
#include "cpu/isa/pack.h"

namespace dsr::cpu::DSR_ISA {
namespace {

template <typename S>
struct GradTileJob {
  const S* packed;      // the tile's first element in packed channel 0
  const S* grad;        // the tile's first element in packed gradient channel 0
  int64_t grad_stride;  // elements from one gradient channel to the next
  const int32_t* offsets;
  const int32_t* begin;  // [channels] of this block
  const int32_t* end;
  int64_t channels;
  S* sums;  // [nnz] of this slice
};

template <typename S, int T>
void accumulate_grad_tile(const GradTileJob<S>& job) {
  constexpr int V = kLanes<S>;
  for (int64_t o = 0; o < job.channels; ++o) {
    const int32_t begin = job.begin[o], end = job.end[o];
    if (begin == end) continue;
    Vec<S> grad[T];
    DSR_UNROLL for (int t = 0; t < T; ++t) grad[t] = load(job.grad + o * job.grad_stride + t * V);
    Vec<S> partial[V];
    int filled = 0;
#pragma GCC unroll 1
    for (int32_t k = begin; k < end; ++k) {
      const S* x = job.packed + job.offsets[k];
      Vec<S> even = grad[0] * load(x), odd = {};
      DSR_UNROLL for (int t = 1; t < T; ++t) {
        if (t % 2)
          odd += grad[t] * load(x + t * V);
        else
          even += grad[t] * load(x + t * V);
      }
      partial[filled++] = even + odd;
      if (filled == V) {
        S* sums = job.sums + k + 1 - V;
        store(sums, load(sums) + sum_rows(partial));
        filled = 0;
      }
    }
    if (filled) {
      for (int i = filled; i < V; ++i) partial[i] = Vec<S>{};
      const Vec<S> rest = sum_rows(partial);
      for (int i = 0; i < filled; ++i) job.sums[end - filled + i] += rest[i];
    }
  }
}

template <typename S>
using GradTileFunction = void (*)(const GradTileJob<S>&);

template <typename S, int T>
struct GradTileFunctions {
  static void fill(GradTileFunction<S>* table) {
    table[T] = accumulate_grad_tile<S, T>;
    if constexpr (T > 1) GradTileFunctions<S, T - 1>::fill(table);
  }
};

template <typename S>
class GradWeight {
 public:
  GradWeight(const GradWeightArgs<S>& args, const GradTileFunction<S>* tiles, char* workspace)
      : args_(args), plan_(*args.plan), tiles_(tiles) {
    packed_ = reinterpret_cast<S*>(workspace);
    grad_ = reinterpret_cast<S*>(workspace + packed_bytes(plan_.source, sizeof(S)));
  }

  // Adds the share of one unit to the sums of output channels [first, last).
  void run(const Unit& unit, int64_t first, int64_t last, S* sums) {
    const PackLayout& l = plan_.source;
    pack(args_.x, args_.x_strides, l, unit, packed_);
    pack(args_.grad, args_.grad_strides, *args_.grad_layout, unit, grad_);
    const int64_t rows = least(unit.rows, plan_.classes[0].rows - unit.row);
    const int64_t elements =
        ((unit.images - 1) * l.image_rows + rows - 1) * l.pitch + plan_.classes[0].cols;
    const int64_t vectors = (elements + kLanes<S> - 1) / kLanes<S>;
    const int64_t count = (vectors + kGradTileVectors - 1) / kGradTileVectors;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t from = vectors * i / count, to = vectors * (i + 1) / count;
      for (int64_t b = 0; b < plan_.blocks; ++b) {
        const int32_t* segments = plan_.segments(0, b) + first;
        tiles_[to - from]({packed_ + from * kLanes<S>,
                           grad_ + first * args_.grad_layout->plane + from * kLanes<S>,
                           args_.grad_layout->plane, plan_.offsets.data(), segments,
                           segments + plan_.destination_channels, last - first, sums});
      }
    }
  }

 private:
  const GradWeightArgs<S>& args_;
  const GatherPlan& plan_;
  const GradTileFunction<S>* tiles_;
  S* packed_;
  S* grad_;
};

}  // namespace

template <typename S>
void grad_weight(const GradWeightArgs<S>& args) {
  const GatherPlan& plan = *args.plan;
  GradTileFunction<S> tiles[kGradTileVectors + 1];
  GradTileFunctions<S, kGradTileVectors>::fill(tiles);
  const int64_t nnz = static_cast<int64_t>(plan.offsets.size());
  const int64_t share =
      packed_bytes(plan.source, sizeof(S)) + packed_bytes(*args.grad_layout, sizeof(S));
  S* sums = reinterpret_cast<S*>(args.workspace + args.threads * share);  // [slices][nnz]
  const int64_t units = plan.units(args.n), channels = plan.destination_channels;
  const int64_t parts = args.slices >= args.threads ? 1 : least(args.threads, channels);
#pragma omp parallel num_threads(args.threads)
  {
    const FlushSubnormals flush;
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < args.slices * parts; ++item) {
      const int64_t slice = item / parts, part = item % parts;
      const int64_t first = channels * part / parts, last = channels * (part + 1) / parts;
      const int32_t* begin = plan.segments(0, 0);
      const int32_t* end = plan.segments(0, plan.blocks);
      S* slice_sums = sums + slice * nnz;
      zero(slice_sums + begin[first], int64_t{end[last - 1]} - begin[first]);
      GradWeight<S> worker(args, tiles, args.workspace + thread_index() * share);
      for (int64_t u = units * slice / args.slices; u < units * (slice + 1) / args.slices; ++u)
        worker.run(unit_at(plan, args.n, u), first, last, slice_sums);
    }
#pragma omp for schedule(static)
    for (int64_t k = 0; k < nnz; ++k) {
      S sum = 0;
      for (int64_t slice = 0; slice < args.slices; ++slice) sum += sums[slice * nnz + k];
      args.grad_values[k] = sum;
    }
  }
}

template void grad_weight<float>(const GradWeightArgs<float>&);
template void grad_weight<double>(const GradWeightArgs<double>&);

}  // namespace dsr::cpu::DSR_ISA
