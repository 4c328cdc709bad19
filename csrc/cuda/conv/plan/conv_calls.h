// A planned pass as one call: everything that it launches, in the order of a stream.
#pragma once

#include <cstdint>

#include "common/status.h"
#include "cuda/conv/fused.h"
#include "cuda/conv/plan/conv_plan.h"
#include "cuda/conv/window_list.h"
#include "cuda/device.h"

namespace dsr::cuda {

// The list that a plan's key asks for, in device memory; what there is of it depends on the kind.
struct PatternList {
  Kind kind;
  int64_t entries = 0;                   // by slabs: of the list; without: nnz
  const int32_t* offsets = nullptr;      // by slabs: [entries] bytes in a slab
  const int32_t* value_index = nullptr;  // by slabs: [entries], -1 in the gaps
  const int32_t* bounds = nullptr;       // by slabs and without: [segments, 2]
  const DirectEntry* direct = nullptr;   // without: [nnz]
  WindowList windows = {};
};

// What a forward or grad-input reads and writes: see gather.h.
struct GatherCall {
  const void *source, *values, *bias;
  void* dest;
  const GatherMaps* maps = nullptr;  // what is done beside; `partial` and `parts` are found here
  // Null, or [channels] each: mean and variance (forward), or two sums.
  float *first = nullptr, *second = nullptr;
};

// What a grad-weight reads and writes: see grad_weight.h.
struct GradWeightCall {
  const void *source, *grad;
  void* grad_values;
  const GradWeightMaps* maps = nullptr;
};

// Device memory for a call, of `sums` beside, too. It must be aligned to 16 bytes.
int64_t workspace_bytes(const ConvPlan& plan, const PatternList& list, bool sums);

Status run_gather(Queue queue, const ConvPlan& plan, const PatternList& list,
                  const GatherCall& call, void* workspace);

// Values of taps that meet only padding are not written, or are sums of what the workspace held.
Status run_grad_weight(Queue queue, const ConvPlan& plan, const PatternList& list,
                       const GradWeightCall& call, void* workspace);

}  // namespace dsr::cuda
