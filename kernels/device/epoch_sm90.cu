/* The head of every launch of a program that waits by signals: one thread begins the next epoch, with which every
 * signal of earlier launches is old. It runs before the lanes fork. */

#include "kernels/device/step.cuh"

extern "C" __global__ void tdm_epoch_sm90(tdm_signal_board* board) {
  board->epoch += 1;
}
