// The new patterns: survivors and grown positions merged in one pass over each layer.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "common/rewire/errors.h"
#include "cpu/rewire/rewire.h"
#include "cpu/rewire/sample.h"

namespace dsr::cpu {
namespace {

// Memory of one thread, large enough for every layer.
struct Scratch {
  SampleBuffers samples;
  std::vector<int32_t> col;     // [nnz + grown + 1] the new column of every entry
  std::vector<int32_t> source;  // [nnz + grown + 1] which entry it was before, -1: grown
};

// Entry j of the old support, at position k, has k - j free positions before it. So the free
// position of rank r is r + (the number of entries with k - j <= r), and with ranks in ascending
// order the merge needs no search: ranks smaller than k - j come before entry j. What is pruned and
// where growth falls is random, so every step writes and then advances or not: mispredicted
// branches would cost more. Returns false where the columns of a row are not ascending and in
// range, or where rows or scores have changed since they were counted. Whatever they hold, nothing
// is written outside the scratch.
template <class T>
bool merge(const RewirePlan& plan, int64_t l, const T* scores,
           const uint64_t* rank,  // [grown + 1] ascending, the last one larger than any
           int32_t* crow, Scratch& scratch) {
  const RewireLayer& layer = plan.layers[l];
  int32_t* const new_col = scratch.col.data();
  int32_t* const source = scratch.source.data();
  const int32_t* const old_col = layer.col;
  const int64_t row_length = layer.row_length;
  const double threshold = plan.thresholds[l];
  const int64_t largest_entry = plan.largest_entry[l], tie_start = plan.tie_start[l];
  int64_t written = 0;
  bool ascending = true;
  crow[0] = 0;
  int64_t j = 0;  // runs on from row to row
  for (int64_t row = 0; row < layer.rows; ++row) {
    const int64_t row_start = row * row_length;
    const int64_t end = layer.crow[row + 1];
    if (end < j || end > layer.nnz) return false;
    int64_t previous = -1;
    while (j < end) {
      const int64_t col = old_col[j];
      const int64_t offset = j - row_start;  // column - rank of the free positions before entry j
      const bool grown = *rank < static_cast<uint64_t>(col - offset);
      const double m = std::fabs(static_cast<double>(scores[j]));
      const bool pruned =
          ((m < threshold) | ((m == threshold) & (j >= tie_start))) & (j != largest_entry);
      new_col[written] = static_cast<int32_t>(grown ? static_cast<int64_t>(*rank) + offset : col);
      source[written] = static_cast<int32_t>(grown ? -1 : j);
      written += grown | !pruned;
      rank += grown;
      ascending &= grown | ((col > previous) & (col < row_length));
      previous = grown ? previous : col;
      j += !grown;
    }
    for (; *rank < static_cast<uint64_t>(row_start + row_length - end); ++rank) {
      new_col[written] = static_cast<int32_t>(static_cast<int64_t>(*rank) + end - row_start);
      source[written++] = -1;
    }
    crow[row + 1] = static_cast<int32_t>(written);
  }
  return ascending && written == plan.nnz_after(l);
}

template <class Word>
void move_words(const RewireArray& array, const int32_t* source, int64_t count) {
  const Word* from = static_cast<const Word*>(array.from);
  Word* to = static_cast<Word*>(array.to);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t survives = -static_cast<int64_t>(source[i] >= 0);  // all bits, or none if grown
    to[i] = from[source[i] & survives] & static_cast<Word>(survives);
  }
}

void move_blocks(const RewireArray& array, const int32_t* source, int64_t count) {
  const char* from = static_cast<const char*>(array.from);
  char* to = static_cast<char*>(array.to);
  for (int64_t i = 0; i < count; ++i, to += array.item_size) {
    if (source[i] >= 0) {
      std::memcpy(to, from + source[i] * array.item_size, array.item_size);
    } else {
      std::memset(to, 0, array.item_size);
    }
  }
}

void move_array(const RewireArray& array, const int32_t* source, int64_t count) {
  switch (array.item_size) {  // all-zero bits are zero in every floating-point type
    case 1:
      return move_words<uint8_t>(array, source, count);
    case 2:
      return move_words<uint16_t>(array, source, count);
    case 4:
      return move_words<uint32_t>(array, source, count);
    case 8:
      return move_words<uint64_t>(array, source, count);
    default:
      return move_blocks(array, source, count);
  }
}

// The first `grown` ranks, ascending, and a last one larger than any; false if given ones do not
// fit.
bool fill_ranks(const RewirePlan& plan, int64_t l, uint64_t seed, uint32_t step,
                const int64_t* given, SampleBuffers& buffers) {
  const RewireLayer& layer = plan.layers[l];
  const int64_t grown = plan.decisions[l].grown, free = layer.positions() - layer.nnz;
  if (given != nullptr) {
    int64_t previous = -1;
    for (int64_t i = 0; i < grown; ++i) {
      if (given[i] <= previous || given[i] >= free) return false;
      buffers.ranks[i] = static_cast<uint64_t>(previous = given[i]);
    }
  } else if (grown > 0) {
    const Feistel permutation =
        Feistel::make(static_cast<uint64_t>(free), seed, step, layer.stream, Purpose::kGrowth);
    sample_sorted(permutation, grown, buffers);
  }
  buffers.ranks[grown] = std::numeric_limits<uint64_t>::max();
  return true;
}

}  // namespace

Status rewire_apply(const RewirePlan& plan, uint64_t seed, uint32_t step,
                    const std::vector<RewireOutput>& outputs) {
  const std::string error = check_outputs(plan, outputs);
  if (!error.empty()) return Status::error(error);

  const int64_t count = static_cast<int64_t>(plan.layers.size());
  int64_t most_grown = 0, most_steps = 0;
  for (int64_t l = 0; l < count; ++l) {
    most_grown = std::max(most_grown, plan.decisions[l].grown);
    most_steps = std::max(most_steps, plan.layers[l].nnz + plan.decisions[l].grown);
  }
  std::vector<Scratch> scratch(plan.threads);
  for (Scratch& s : scratch) {
    s.samples.reserve(most_grown + 1);
    s.col.resize(most_steps + 1);
    s.source.resize(most_steps + 1);
  }
  std::vector<std::string> errors(count);
  for_each_layer(plan, [&](int64_t l) {
    if (outputs[l].crow == nullptr) return;  // it stays as it is
    const RewireLayer& layer = plan.layers[l];
    Scratch& mine = scratch[omp_get_thread_num()];
    if (!fill_ranks(plan, l, seed, step, outputs[l].ranks, mine.samples)) {
      errors[l] = bad_ranks(layer);
      return;
    }
    bool merged = false;
    with_scores(layer, [&](const auto* scores) {
      merged = merge(plan, l, scores, mine.samples.ranks.data(), outputs[l].crow, mine);
    });
    if (!merged) {
      errors[l] = unsorted_or_changed(layer);
      return;
    }
    std::copy_n(mine.col.data(), plan.nnz_after(l), outputs[l].col);
    for (const RewireArray& array : outputs[l].arrays) {
      move_array(array, mine.source.data(), plan.nnz_after(l));
    }
  });
  for (const std::string& error : errors) {
    if (!error.empty()) return Status::error(error);
  }
  return Status::ok();
}

}  // namespace dsr::cpu
