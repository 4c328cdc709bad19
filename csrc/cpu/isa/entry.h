// What the instruction-set builds export to their kernel table.
#pragma once

#include <omp.h>

#include "cpu/conv/kernels.h"

namespace dsr::cpu::DSR_ISA {

template <typename S>
void gather(const GatherArgs<S>& args);
template <typename S>
void grad_weight(const GradWeightArgs<S>& args);
template <typename S>
void backward(const GatherArgs<S>& grad_input, const GradWeightArgs<S>& grad_weight);

// What backward() takes of grad_weight(): the sums of units [begin, end) are added to `sums` [nnz],
// with a thread's `share` of the workspace; and a team of threads adds up the slices.
template <typename S>
void add_units(const GradWeightArgs<S>& args, char* share, int64_t begin, int64_t end, S* sums);
template <typename S>
void add_slices(const GradWeightArgs<S>& args);

void channel_moments(const MomentsArgs& args);
template <typename S>
void channel_affine(const AffineArgs<S>& args);
template <typename S>
void channel_affine_grad(const AffineGradArgs<S>& args);

double peak_gflops(int threads, double seconds);

static inline int64_t thread_index() { return omp_get_thread_num(); }

}  // namespace dsr::cpu::DSR_ISA
