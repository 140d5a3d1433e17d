/* Medians of MPI_Allreduce between the ranks of mpirun, for benchmarks/allreduce.py.
 *
 *     allreduce_mpi ROUNDS LEAST_ROUNDS CELL_SECONDS BLOCK_SECONDS CORES(0,1) [DTYPE:BYTES ...]
 *
 * Rank i keeps to the i-th of CORES. MPI has no bf16: a reduction of our own widens it, as torch's does. */
#define _GNU_SOURCE
#include <mpi.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static float widened(uint16_t half) {
  uint32_t bits = (uint32_t)half << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

static void add_bf16(void* in, void* inout, int* count, MPI_Datatype* type) {
  const uint16_t* a = in;
  uint16_t* b = inout;
  (void)type;
  for (int i = 0; i < *count; i++) {
    float sum = widened(a[i]) + widened(b[i]);
    uint32_t bits;
    memcpy(&bits, &sum, 4);
    b[i] = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16); /* to nearest even */
  }
}

static int ascending(const void* a, const void* b) {
  double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

/* Seconds of a block of all-reduces: the slowest rank's. */
static double block(void* data, int count, MPI_Datatype type, MPI_Op op, int repeats) {
  MPI_Barrier(MPI_COMM_WORLD);
  double start = MPI_Wtime();
  for (int i = 0; i < repeats; i++) MPI_Allreduce(MPI_IN_PLACE, data, count, type, op, MPI_COMM_WORLD);
  double taken = MPI_Wtime() - start;
  MPI_Allreduce(MPI_IN_PLACE, &taken, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  return taken;
}

int main(int argc, char** argv) {
  int rank;
  MPI_Op bf16_sum;
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Op_create(add_bf16, 1, &bf16_sum);
  int most = atoi(argv[1]), least = atoi(argv[2]), cores[2];
  double cell_s = atof(argv[3]), block_s = atof(argv[4]);
  if (sscanf(argv[5], "%d,%d", &cores[0], &cores[1]) != 2) MPI_Abort(MPI_COMM_WORLD, 2);
  cpu_set_t own;
  CPU_ZERO(&own);
  CPU_SET(cores[rank], &own);
  sched_setaffinity(0, sizeof own, &own);
  double* taken = malloc(sizeof(double) * (most + 1));
  for (int cell = 6; cell < argc; cell++) {
    char dtype[8];
    long bytes;
    if (sscanf(argv[cell], "%7[^:]:%ld", dtype, &bytes) != 2) MPI_Abort(MPI_COMM_WORLD, 2);
    int is_bf16 = !strcmp(dtype, "bf16"), is_fp32 = !strcmp(dtype, "fp32"), width = is_bf16 ? 2 : 4;
    int count = (int)(bytes / width);
    MPI_Datatype type = is_bf16 ? MPI_UINT16_T : is_fp32 ? MPI_FLOAT : MPI_INT32_T;
    MPI_Op op = is_bf16 ? bf16_sum : MPI_SUM;
    uint32_t one = is_bf16 ? 0x3f80 : is_fp32 ? 0x3f800000 : 1, two = is_bf16 ? 0x4000 : is_fp32 ? 0x40000000 : 2;
    char* data = malloc(bytes);
    for (int i = 0; i < count; i++) memcpy(data + (long)i * width, &one, width);
    block(data, count, type, op, 1);
    for (int i = 0; i < count; i++)
      if (memcmp(data + (long)i * width, &two, width)) MPI_Abort(MPI_COMM_WORLD, 3);
    memset(data, 0, bytes);
    block(data, count, type, op, 1);
    double once = block(data, count, type, op, 1);
    int repeats = (int)(block_s / once), rounds = (int)(cell_s / (once > block_s ? once : block_s));
    repeats = repeats < 1 ? 1 : repeats > 100 ? 100 : repeats;
    rounds = rounds > most ? most : rounds < least ? least : rounds;
    for (int round = 0; round <= rounds; round++) /* the first is not counted */
      taken[round] = block(data, count, type, op, repeats) / repeats;
    qsort(taken + 1, rounds, sizeof(double), ascending);
    if (rank == 0) printf("%s:%ld %.9f\n", dtype, bytes, (taken[(rounds + 1) / 2] + taken[rounds / 2 + 1]) / 2);
    free(data);
  }
  MPI_Finalize();
  return 0;
}
