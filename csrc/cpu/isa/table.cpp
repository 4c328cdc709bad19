// The kernel table of one instruction set; the only symbol of this build that the dispatcher names.
#include "cpu/isa/entry.h"
#include "cpu/isa/limits.h"

namespace dsr::cpu::DSR_ISA {

#define DSR_STRING_(x) #x
#define DSR_STRING(x) DSR_STRING_(x)

extern const KernelTable table;
const KernelTable table = {.name = DSR_STRING(DSR_ISA),
                           .limits = kLimits,
                           .gather_f32 = gather<float>,
                           .gather_f64 = gather<double>,
                           .grad_weight_f32 = grad_weight<float>,
                           .grad_weight_f64 = grad_weight<double>,
                           .backward_f32 = backward<float>,
                           .backward_f64 = backward<double>,
                           .channel_moments = channel_moments,
                           .channel_affine_f32 = channel_affine<float>,
                           .channel_affine_f64 = channel_affine<double>,
                           .channel_affine_grad_f32 = channel_affine_grad<float>,
                           .channel_affine_grad_f64 = channel_affine_grad<double>,
                           .peak_gflops = peak_gflops};

}  // namespace dsr::cpu::DSR_ISA
