// What the kernels of a rewire read and write in device memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/feistel.h"
#include "cuda/carver.h"

namespace dsr::cuda {

struct RewireConfig {
  static constexpr int kThreads = 128;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kChunk = 1024;  // entries, rows or ranks of one layer: the work of a block
  static constexpr int kWarpSpan = kChunk / kWarps;  // consecutive ones: the work of a warp
  static constexpr int kDigitBits = 8;               // of magnitudes and of ranks
  static constexpr int kDigits = 1 << kDigitBits;
  static constexpr int kScanned = 4;  // counts that a thread scans at a time

  static_assert(kThreads % 32 == 0, "a block is whole warps");
  static_assert(kWarpSpan % 32 == 0, "a warp's work is whole steps of 32");
  static_assert(kDigits % kThreads == 0, "every thread has as many digits");
};

using Word = unsigned long long;  // the 64-bit type of CUDA's atomics

struct LayerView {
  const int32_t* crow;  // [rows + 1]
  const int32_t* col;   // [nnz]
  const void* scores;   // [nnz] of double or float
  int64_t rows, row_length, nnz;
  int64_t first_entry;  // where its entries begin among those of all layers
  bool is_double;
};

// What is found out about one layer.
struct LayerFindings {
  static constexpr uint32_t kNone = ~0u;

  Word largest = 0;                // the largest magnitude's bits
  Word less = 0;                   // how many prunable entries are below the threshold
  Word equal = 0;                  // how many are at it
  uint32_t largest_entry = kNone;  // the first entry of the largest magnitude
  uint32_t bad = kNone;            // the first NaN or infinite entry
  uint32_t broken = 0;             // crow does not rise from 0 to nnz
  uint32_t misranked = 0;          // given ranks do not ascend among the free positions
  uint32_t unplaced = 0;  // columns do not ascend, or scores have changed since they were counted
};

// A threshold. While it is being found: its higher digits, and its rank among the entries that
// share them.
struct Selection {
  static constexpr Word kNoRank = ~Word{0};  // the threshold is known: there is nothing to find

  Word bits = 0;
  Word rank = kNoRank;
};

struct RewireTables {
  int layers;
  int scopes = 1;           // thresholds: one for all layers together, or one for each
  Selection* selections;    // [scopes], with `findings` all that comes back to the host
  LayerFindings* findings;  // [layers]
  LayerView* views;         // [layers]
  int64_t* entry_chunks;    // [layers + 1] chunks of entries before each layer
  int64_t* row_chunks;      // [layers + 1] chunks of the rows + 1 elements of crow

  DSR_HOST_DEVICE int scope_of(int layer) const { return scopes == 1 ? 0 : layer; }
  int most_scopes() const { return std::max(layers, 1); }

  void carve(Carver& carver) {
    selections = carver.take<Selection>(most_scopes());
    findings = carver.take<LayerFindings>(layers);
    views = carver.take<LayerView>(layers);
    entry_chunks = carver.take<int64_t>(layers + 1);
    row_chunks = carver.take<int64_t>(layers + 1);
  }
  size_t findings_bytes() const {
    return reinterpret_cast<uintptr_t>(views) - reinterpret_cast<uintptr_t>(selections);
  }

  Word* histograms;  // [scopes][kDigits] all zero between passes
  // [chunks of entries] Counts (at the threshold, below it) in the halves of a word: first of the
  // chunk, then of the chunks before it in its layer.
  Word* chunk_counts;

  void carve_scratch(Carver& carver, int64_t chunks) {
    histograms = carver.take<Word>(most_scopes() * RewireConfig::kDigits);
    chunk_counts = carver.take<Word>(chunks);
  }
};

// Where a layer's entries are moved to.
struct LayerMove {
  const int64_t* ranks;  // [grown] which of the free positions grow; null: the first points of
  Feistel growth;        // this permutation of them
  int64_t kept_ties;     // entries at the threshold that stay: the first ones
  int64_t kept, grown;
  int64_t first_rank;  // where its ranks begin among those of all layers
  int32_t* crow;       // [rows + 1]; null: the layer stays as it is
  int32_t* col;        // [kept + grown]
  int64_t first_array, arrays;
};

// An item is one unit of 1, 2, 4 or 8 bytes, or several of 4 bytes or of 1, as its size and its
// addresses allow.
struct ArrayMove {
  const void* from;  // [nnz][units]
  void* to;          // [kept + grown][units]
  int64_t unit_size, units;
};

struct MoveTables {
  int layers;
  LayerMove* moves;      // [layers]
  ArrayMove* arrays;     // all layers' in a row
  int64_t* rank_chunks;  // [layers + 1] chunks of ranks before each layer

  void carve(Carver& carver, int64_t array_count) {
    moves = carver.take<LayerMove>(layers);
    arrays = carver.take<ArrayMove>(array_count);
    rank_chunks = carver.take<int64_t>(layers + 1);
  }

  Word* ranks;             // [grown of all layers] of the grown among the free positions
  Word* other_ranks;       // as many: the other half of the sort's ping-pong
  uint32_t* digit_counts;  // [chunks of ranks][kDigits], in a layer digit by digit
  int32_t* kept_before;    // [entries of all layers] survivors before it in its layer

  void carve_scratch(Carver& carver, int64_t grown, int64_t chunks, int64_t entries) {
    ranks = carver.take<Word>(grown);
    other_ranks = carver.take<Word>(grown);
    digit_counts = carver.take<uint32_t>(chunks * RewireConfig::kDigits);
    kept_before = carver.take<int32_t>(entries);
  }
};

// starts[l]: how many chunks the layers before l need when layer l has items(l) items.
template <class Items>
void count_chunks(int64_t* starts, int layers, Items&& items) {
  starts[0] = 0;
  for (int l = 0; l < layers; ++l) {
    starts[l + 1] = starts[l] + (items(l) + RewireConfig::kChunk - 1) / RewireConfig::kChunk;
  }
}

}  // namespace dsr::cuda
