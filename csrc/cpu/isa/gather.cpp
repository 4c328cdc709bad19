// Forward and grad-input: destination[d, m] = bias[d] + sum over row d of value * packed[offset +
// m].
//
// A tile of T vectors of m stays in registers while a segment (the non-zeros of one destination
// channel within a block of source channels) streams past: per non-zero one broadcast, one offset,
// T multiply-adds that take their operand straight from L1.
#include "cpu/isa/entry.h"
#include "cpu/isa/pack.h"
#include "cpu/isa/store.h"

namespace dsr::cpu::DSR_ISA {
namespace {

template <typename S>
struct TileJob {
  const S* packed;         // the tile's first element in packed channel 0
  const int32_t* offsets;  // of the whole plan
  const S* values;
  const S* bias;         // of the first channel, or null
  const int32_t* begin;  // [channels] of this block; the next row of the table are the ends
  const int32_t* end;
  int64_t channels;
  bool first;       // of the blocks: accumulators start at the bias instead of where they were
  S* accumulators;  // [channels][T * lanes]
};

template <typename S, int T>
void accumulate_tile(const TileJob<S>& job) {
  constexpr int V = kLanes<S>;
  S* accumulators = job.accumulators;
  for (int64_t d = 0; d < job.channels; ++d, accumulators += T * V) {
    const int32_t begin = job.begin[d], end = job.end[d];
    if (begin == end && !job.first) continue;
    Vec<S> sum[T];
    if (job.first) {
      const Vec<S> start = broadcast(job.bias ? job.bias[d] : S{0});
      DSR_UNROLL for (int t = 0; t < T; ++t) sum[t] = start;
    } else {
      DSR_UNROLL for (int t = 0; t < T; ++t) sum[t] = load(accumulators + t * V);
    }
#pragma GCC unroll 1
    for (int32_t k = begin; k < end; ++k) {
      const S* x = job.packed + job.offsets[k];
      const Vec<S> value = broadcast(job.values[k]);
      DSR_UNROLL for (int t = 0; t < T; ++t) sum[t] += value * load(x + t * V);
    }
    DSR_UNROLL for (int t = 0; t < T; ++t) store(accumulators + t * V, sum[t]);
  }
}

template <typename S>
using TileFunction = void (*)(const TileJob<S>&);

template <typename S, int T>
struct TileFunctions {
  static void fill(TileFunction<S>* table) {
    table[T] = accumulate_tile<S, T>;
    if constexpr (T > 1) TileFunctions<S, T - 1>::fill(table);
  }
};

template <typename S>
class Gather {
 public:
  Gather(const GatherArgs<S>& args, const TileFunction<S>* tiles, char* workspace)
      : args_(args), plan_(*args.plan), tiles_(tiles) {
    packed_ = reinterpret_cast<S*>(workspace);
    accumulators_ = reinterpret_cast<S*>(workspace + packed_bytes(plan_.source, sizeof(S)));
  }

  // Destination channels [first, last) of one unit.
  void run(const Unit& unit, int64_t first, int64_t last) {
    pack(args_.source, args_.source_strides, plan_.source, unit, packed_);
    for (int64_t k = 0; k < static_cast<int64_t>(plan_.classes.size()); ++k) {
      const DestinationClass& target = plan_.classes[k];
      const int64_t rows = least(unit.rows, target.rows - unit.row);
      if (rows <= 0 || target.cols <= 0) continue;
      const PackLayout& l = plan_.source;
      const int64_t elements =
          ((unit.images - 1) * l.image_rows + rows - 1) * l.pitch + target.cols;
      const int64_t vectors = (elements + kLanes<S> - 1) / kLanes<S>;
      const int64_t count = (vectors + kTileVectors - 1) / kTileVectors;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t begin = vectors * i / count, end = vectors * (i + 1) / count;
        tile(unit, k, begin * kLanes<S>, static_cast<int>(end - begin), first, last);
      }
    }
  }

 private:
  void tile(const Unit& unit, int64_t k, int64_t first_element, int vectors, int64_t first,
            int64_t last) {
    Run runs[kMaxTileElements];
    const int64_t width = vectors * kLanes<S>;
    const int found = find_runs(plan_, plan_.classes[k], unit, args_.destination_strides,
                                first_element, width, runs);
    if (found == 0) return;
    const int64_t table = plan_.classes[k].table, blocks = table < 0 ? 1 : plan_.blocks;
    for (int64_t d = first; d < last; d += kDestinationBlock) {
      const int64_t channels = least(kDestinationBlock, last - d);
      for (int64_t b = 0; b < blocks; ++b) {
        const int32_t* begin = plan_.segments(most(table, 0), b) + d;
        // Where no tap reaches, every segment ends where it begins.
        const int32_t* end = table < 0 ? begin : begin + plan_.destination_channels;
        tiles_[vectors]({packed_ + first_element, plan_.offsets.data(), args_.values,
                         args_.bias ? args_.bias + d : nullptr, begin, end, channels, b == 0,
                         accumulators_});
      }
      store_tile(accumulators_, width, channels, runs, found,
                 args_.destination + d * args_.destination_strides.c, args_.destination_strides.c);
    }
  }

  const GatherArgs<S>& args_;
  const GatherPlan& plan_;
  const TileFunction<S>* tiles_;
  S* packed_;
  S* accumulators_;
};

}  // namespace

template <typename S>
void gather(const GatherArgs<S>& args) {
  const GatherPlan& plan = *args.plan;
  TileFunction<S> tiles[kTileVectors + 1];
  TileFunctions<S, kTileVectors>::fill(tiles);
  const int64_t share = packed_bytes(plan.source, sizeof(S)) + accumulator_bytes(sizeof(S));
  // Fewer units than threads: the destination channels are shared out too, each thread packing for
  // itself.
  const int64_t units = plan.units(args.n);
  const int64_t parts =
      units >= 2 * args.threads ? 1 : least(args.threads, plan.destination_channels);
#pragma omp parallel for schedule(dynamic) num_threads(args.threads)
  for (int64_t item = 0; item < units * parts; ++item) {
    const FlushSubnormals flush;
    const int64_t part = item % parts;
    Gather<S> worker(args, tiles, args.workspace + thread_index() * share);
    worker.run(unit_at(plan, args.n, item / parts), plan.destination_channels * part / parts,
               plan.destination_channels * (part + 1) / parts);
  }
}

template void gather<float>(const GatherArgs<float>&);
template void gather<double>(const GatherArgs<double>&);

}  // namespace dsr::cpu::DSR_ISA
