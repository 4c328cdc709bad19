// What the instruction-set builds export to their kernel table.
#pragma once

#include <omp.h>

#include "cpu/conv/kernels.h"

namespace dsr::cpu::DSR_ISA {

template <typename S>
void gather(const GatherArgs<S>& args);
template <typename S>
void grad_weight(const GradWeightArgs<S>& args);

void channel_moments(const MomentsArgs& args);
template <typename S>
void channel_affine(const AffineArgs<S>& args);
template <typename S>
void channel_affine_grad(const AffineGradArgs<S>& args);

double peak_gflops(int threads, double seconds);

static inline int64_t thread_index() { return omp_get_thread_num(); }

}  // namespace dsr::cpu::DSR_ISA
