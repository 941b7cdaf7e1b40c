// SPDX-License-Identifier: Apache-2.0
// From packed camera bytes to their place in a policy's tensor, in one pass: decode, crop, resize, pad, normalise.
//
// One launch takes up to MAX_JOBS images (blockIdx.z); each block makes one tile of one output (blockIdx.x and y). It
// decodes the source rows that its tile needs, some at a time, into shared memory, sums them along the columns, and at
// the end sums the results along the rows. So a pixel is decoded once per tile, however many taps use it. Crops and
// borders are part of the tables, which come ready for each tile; the layout of the tensor is part of the offsets; and
// scale, mean, standard deviation and type are part of a table of 256 values per channel. The arithmetic is that of
// `gpu/taps.py`.
//
// Lines and taps come in quads, four that follow each other (`gpu/quads.py`): levels lie in shared memory with four
// columns of one channel in a word and four rows in four words. So whole words are read from the source, threads that
// stand next to each other seldom meet in a bank, and one instruction adds two or four products of integers.
//
// A variant is chosen by: PIXELS (PACKED, YUV422, SEMI_PLANAR, BAYER), ARITHMETIC (PICK, ROUNDED, LINEAR, CUBIC, AREA),
// ELEMENT_BYTES (1, 2, 4), and by the limits MAX_JOBS, NUM_THREADS and SHARED_WORDS, which gpu/preprocess.py knows too.

#define PACKED 1
#define YUV422 2
#define SEMI_PLANAR 3
#define BAYER 4

#define PICK 1
#define ROUNDED 2
#define LINEAR 3
#define CUBIC 4
#define AREA 5

#if defined(__CUDA_ARCH__)
#define THREAD_INDEX static_cast<int>(threadIdx.x)
#define THREAD_COUNT NUM_THREADS
#define LANES 32
#define SYNC() __syncthreads()
#define SHARED __shared__
#define UNROLL _Pragma("unroll")
#define LOOP _Pragma("unroll 1")
#elif !defined(THREAD_INDEX)  // on the host the first thread does the work of its block; a test has its own threads
#define THREAD_INDEX 0
#define THREAD_COUNT 1
#define LANES 1
#define SYNC()
#define SHARED static thread_local
#define ONE_THREAD
#endif
#ifndef __CUDA_ARCH__
#define UNROLL
#define LOOP
#define __grid_constant__
#endif

// Blocks that a multiprocessor takes at once at least, which limits their registers: three cameras of 224 x 224 pixels
// make 588 blocks, on an H200 4.5 for each of its 132 multiprocessors. So all of them run at once.
#define BLOCKS 5

#define DEVICE __device__ __forceinline__
#define LANE static_cast<int>(static_cast<unsigned int>(THREAD_INDEX) % LANES)
#define GROUP static_cast<int>(static_cast<unsigned int>(THREAD_INDEX) / LANES)
#define GROUPS (THREAD_COUNT / LANES)

#if ELEMENT_BYTES == 4
typedef unsigned int Element;
#elif ELEMENT_BYTES == 2
typedef unsigned short Element;
#else
typedef unsigned char Element;
#endif

#if ARITHMETIC == AREA
typedef float Number;
#else
typedef int Number;
#endif

template <typename T>
struct alignas(16) Quad {
    T of[4];
};

typedef unsigned int Word;  // levels of one channel: of four columns, or of four rows
typedef Quad<Word> Levels;  // of one channel: a word of four columns for each of four rows

#if ARITHMETIC == ROUNDED
typedef Word Partial;  // four rows of one channel, summed along the columns
#else
typedef Quad<Number> Partial;
#endif

// One axis, whose tables come by tile, see `axis_tables` in gpu/quads.py: how many quads of source lines the tile needs
// and their lines, which are read at once; behind them a `Tile`, which is copied to shared memory.
struct Axis {
    const int *tables;
    int table_quads;  // quads of words per tile
    int line_quads;   // of them, before its `Tile`
    int size;         // output lines
    int tile;         // output lines per tile
};

// What a block needs to know of the output lines of its tile; `size` of each in turn.
struct Tile {
    const int *first;   // its first quad, counted from the first of the tile; PICK: its line
    const int *count;   // how many quads; 0 in a border
    const int *offset;  // elements from the start of the target
    const Number *weights;
    int size;
};

// One image of a launch; gpu/plans.py packs it.
struct Job {
    const unsigned char *source;
    long long step_bytes;  // per row of the source
    Element *target;
    const Element *values;  // of every level, (3, 256), red first
    Axis rows, columns;
    int height, width;       // of the source in pixels
    int pixel[4];            // where the bytes of a pixel lie, see the functions `read_pixel`
    int selectors[3];        // PACKED: per channel, how `read_run` sorts bytes
    int channel_offsets[3];  // elements from red to red, green and blue, or the other way round
    int columns_at, partials_at, levels_at;  // quads of words in shared memory before them
    int chunk;               // quads of rows that are decoded at a time
    int repeats;             // how often the image stands in the tensor
    int repeat_offset;       // elements between two of them
    int border;              // level
    int shift;               // ROUNDED: bits of the weights behind the point
    float bias, scale;       // AREA: applied to the sum
};

struct Batch {
    Job jobs[MAX_JOBS];
};

#ifdef __CUDA_ARCH__
// The sum of two products, of levels in the lower or upper half of a word with weights of 16 bits.
DEVICE int dot_lower(int weights, Word levels, int sum) {
    asm("dp2a.lo.s32.u32 %0, %1, %2, %0;" : "+r"(sum) : "r"(weights), "r"(levels));
    return sum;
}
DEVICE int dot_upper(int weights, Word levels, int sum) {
    asm("dp2a.hi.s32.u32 %0, %1, %2, %0;" : "+r"(sum) : "r"(weights), "r"(levels));
    return sum;
}
// The sum of four products, of levels with weights of 8 bits.
DEVICE int dot_bytes(Word levels, int weights, int sum) {
    asm("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(sum) : "r"(levels), "r"(weights));
    return sum;
}
// Four levels in a word, clipped to 0 to 255.
DEVICE Word pack_clipped(int a, int b, int c, int d) {
    Word word = 0;
    asm("cvt.pack.sat.u8.s32.b32 %0, %1, %2, %0;" : "+r"(word) : "r"(d), "r"(c));
    asm("cvt.pack.sat.u8.s32.b32 %0, %1, %2, %0;" : "+r"(word) : "r"(b), "r"(a));
    return word;
}
#endif

DEVICE int clip(int value) { return min(max(value, 0), 255); }

DEVICE unsigned int pack(int red, int green, int blue) {
    return static_cast<unsigned int>(red | green << 8 | blue << 16);
}

#if PIXELS == PACKED

// pixel: bytes per pixel; byte of red, green, blue.
DEVICE unsigned int read_pixel(const Job &job, int y, int x) {
    const unsigned char *bytes = job.source + y * job.step_bytes + x * job.pixel[0];
    return pack(__ldg(bytes + job.pixel[1]), __ldg(bytes + job.pixel[2]), __ldg(bytes + job.pixel[3]));
}

// Reads four pixels that follow each other, of four bytes at most, in whole words of the source, and no word without a
// byte of theirs. The bytes of a channel are picked from both halves of the 16 bytes, then from the two results.
DEVICE void read_run(const Job &job, int y, int x, Word (&levels)[3]) {
    const int run_bytes = 4 * job.pixel[0];
    const unsigned char *bytes = job.source + y * job.step_bytes + x * job.pixel[0];
    const int skip = static_cast<int>(reinterpret_cast<unsigned long long>(bytes) & 3);
    const Word *words = reinterpret_cast<const Word *>(bytes - skip);
    Word read[5];
    UNROLL
    for (int i = 0; i < 5; ++i) read[i] = 4 * i < skip + run_bytes ? __ldg(words + i) : 0;
    UNROLL
    for (int i = 0; i < 4; ++i) read[i] = __funnelshift_r(read[i], read[i + 1], 8 * skip);
    UNROLL
    for (int channel = 0; channel < 3; ++channel) {
        const unsigned int selector = job.selectors[channel];
        const Word first = __byte_perm(read[0], read[1], selector), second = __byte_perm(read[2], read[3], selector);
        levels[channel] = __byte_perm(first, second, selector >> 16);
    }
}

#elif PIXELS == YUV422 || PIXELS == SEMI_PLANAR

// BT.601, limited range, in OpenCV's fixed point of 20 bits.
DEVICE unsigned int from_yuv(int luma, int u, int v) {
    const int half = 1 << 19, y = max(luma - 16, 0) * 1220542;
    u -= 128;
    v -= 128;
    const int red = (y + half + 1673527 * v) >> 20;
    const int green = (y + half - 852492 * v - 409993 * u) >> 20;
    const int blue = (y + half + 2116026 * u) >> 20;
    return pack(clip(red), clip(green), clip(blue));
}

#if PIXELS == YUV422
// pixel: byte of the first luma, of U and of V in the four bytes of two pixels.
DEVICE unsigned int read_pixel(const Job &job, int y, int x) {
    const unsigned char *pair = job.source + y * job.step_bytes + (x >> 1) * 4;
    return from_yuv(__ldg(pair + job.pixel[0] + (x & 1) * 2), __ldg(pair + job.pixel[1]), __ldg(pair + job.pixel[2]));
}
#else
// pixel: 0; byte of U and of V in the two chroma bytes of a block.
DEVICE unsigned int read_pixel(const Job &job, int y, int x) {
    const unsigned char *luma = job.source + y * job.step_bytes + x;
    const unsigned char *chroma = job.source + (job.height + (y >> 1)) * job.step_bytes + (x & ~1);
    return from_yuv(__ldg(luma), __ldg(chroma + job.pixel[1]), __ldg(chroma + job.pixel[2]));
}
#endif

#else

// pixel: row and column of the first red site. Bilinear as in OpenCV, whose outermost pixels repeat their neighbours.
DEVICE unsigned int read_pixel(const Job &job, int y, int x) {
    y = min(max(y, 1), job.height - 2);
    x = min(max(x, 1), job.width - 2);
    const unsigned char *row = job.source + y * job.step_bytes + x;
    const unsigned char *above = row - job.step_bytes, *below = row + job.step_bytes;
    const int here = __ldg(row);
    const int up_down = __ldg(above) + __ldg(below), left_right = __ldg(row - 1) + __ldg(row + 1);
    const bool in_red_row = ((y ^ job.pixel[0]) & 1) == 0, in_red_column = ((x ^ job.pixel[1]) & 1) == 0;
    if (in_red_row != in_red_column) {
        const int across = (left_right + 1) >> 1, along = (up_down + 1) >> 1;
        return in_red_row ? pack(across, here, along) : pack(along, here, across);
    }
    const int green = (up_down + left_right + 2) >> 2;
    const int corners = __ldg(above - 1) + __ldg(above + 1) + __ldg(below - 1) + __ldg(below + 1);
    const int other = (corners + 2) >> 2;
    return in_red_row ? pack(here, green, other) : pack(other, green, here);
}

#endif

// Puts one pixel into the tensor.
DEVICE void write_pixel(const Job &job, int offset, unsigned int pixel) {
    Element values[3], *target = job.target + offset;
    UNROLL
    for (int channel = 0; channel < 3; ++channel)
        values[channel] = __ldg(job.values + 256 * channel + (pixel >> 8 * channel & 255));
    LOOP
    for (int repeat = 0; repeat < job.repeats; ++repeat, target += job.repeat_offset)
        UNROLL
        for (int channel = 0; channel < 3; ++channel) target[job.channel_offsets[channel]] = values[channel];
}

#if ARITHMETIC != PICK

// Decodes four rows and four columns.
DEVICE void read_quad(const Job &job, const int4 &y, const int4 &x, Levels *levels) {
    const int rows[4] = {y.x, y.y, y.z, y.w};
#if PIXELS == PACKED
    if (job.pixel[0] <= 4 && x.y == x.x + 1 && x.z == x.x + 2 && x.w == x.x + 3) {
        Word words[4][3];
        UNROLL
        for (int row = 0; row < 4; ++row) read_run(job, rows[row], x.x, words[row]);
        UNROLL
        for (int channel = 0; channel < 3; ++channel) {
            const Levels sorted = {words[0][channel], words[1][channel], words[2][channel], words[3][channel]};
            levels[channel] = sorted;
        }
        return;
    }
#endif
    UNROLL
    for (int row = 0; row < 4; ++row) {
        const unsigned int a = read_pixel(job, rows[row], x.x), b = read_pixel(job, rows[row], x.y);
        const unsigned int c = read_pixel(job, rows[row], x.z), d = read_pixel(job, rows[row], x.w);
        const Word ab = __byte_perm(a, b, 0x5140), cd = __byte_perm(c, d, 0x5140);
        levels[0].of[row] = __byte_perm(ab, cd, 0x5410);
        levels[1].of[row] = __byte_perm(ab, cd, 0x7632);
        levels[2].of[row] = __byte_perm(__byte_perm(a, b, 0x0062), __byte_perm(c, d, 0x0062), 0x5410);
    }
}

// A tap is a product that is rounded before it is added, as on the host: no fused multiply-add.
DEVICE Number add_product(Number sum, Number weight, Number value) {
#if ARITHMETIC == AREA
    return __fadd_rn(sum, __fmul_rn(weight, value));
#elif ARITHMETIC == LINEAR
    return sum + ((weight * value) >> 16);
#else
    return sum + weight * value;
#endif
}

// The weights of a quad, one word after another with `stride` numbers between them.
struct Weights {
    Number of[4];
    DEVICE Weights(const Number *weights, int stride) {
        UNROLL
        for (int tap = 0; tap < 4; ++tap) of[tap] = weights[tap * stride];
    }
    static const int words = 4;
};

#if ARITHMETIC == AREA

typedef float ColumnSum;
typedef Weights ColumnWeights;

DEVICE float start_sum(const Job &) { return 0; }

DEVICE void add_levels(float &sum, Word levels, const Weights &weights) {
    UNROLL
    for (int tap = 0; tap < 4; ++tap)
        sum = add_product(sum, weights.of[tap], static_cast<float>(levels >> 8 * tap & 255));
}

DEVICE Partial finish_columns(const Job &, const float (&sums)[4]) {
    const Partial kept = {sums[0], sums[1], sums[2], sums[3]};
    return kept;
}

DEVICE int finish_row(const Job &job, float sum) {
    return static_cast<int>(rintf(__fmul_rn(__fadd_rn(sum, job.bias), job.scale)));
}

#else

// A weight is low + high * 65536, with 16 and 8 bits; only the 22 bits of ROUNDED need the second part.
struct ColumnWeights {
    int low[2], high;
    DEVICE ColumnWeights(const int *weights, int stride) {
        low[0] = weights[0];
        low[1] = weights[stride];
        high = ARITHMETIC == ROUNDED ? weights[2 * stride] : 0;
    }
    static const int words = ARITHMETIC == ROUNDED ? 3 : 2;
};

// Sums of both parts; what overflows in one comes back when they are added.
struct ColumnSum {
    int low, high;
    DEVICE int whole() const { return static_cast<int>(low + (static_cast<unsigned int>(high) << 16)); }
};

DEVICE ColumnSum start_sum(const Job &job) {
    const ColumnSum sum = {ARITHMETIC == ROUNDED ? 1 << (job.shift - 1) : 0, 0};
    return sum;
}

DEVICE void add_levels(ColumnSum &sum, Word levels, const ColumnWeights &weights) {
    sum.low = dot_upper(weights.low[1], levels, dot_lower(weights.low[0], levels, sum.low));
#if ARITHMETIC == ROUNDED
    sum.high = dot_bytes(levels, weights.high, sum.high);
#endif
}

#if ARITHMETIC == ROUNDED
DEVICE Word finish_columns(const Job &job, const ColumnSum (&sums)[4]) {
    int levels[4];
    UNROLL
    for (int row = 0; row < 4; ++row) levels[row] = sums[row].whole() >> job.shift;
    return pack_clipped(levels[0], levels[1], levels[2], levels[3]);
}
#else
DEVICE Partial finish_columns(const Job &, const ColumnSum (&sums)[4]) {
    Partial kept;
    UNROLL
    for (int row = 0; row < 4; ++row) kept.of[row] = ARITHMETIC == LINEAR ? sums[row].low >> 4 : sums[row].low;
    return kept;
}
DEVICE int finish_row(const Job &, int sum) {
    return ARITHMETIC == LINEAR ? (sum + 2) >> 2 : (sum + (1 << 21)) >> 22;
}
#endif

#endif

// Sums four rows along the columns, for output line x of the tile. `levels` begins with the tile's first quad of
// columns; red, green and blue of the sums lie as far apart as the tile is wide.
DEVICE void sum_columns(const Job &job, const Tile &columns, int x, const Levels *levels, Partial *partials) {
    const Number *weights = columns.weights + x;
    levels += 3 * columns.first[x];
    ColumnSum sums[3][4];
    UNROLL
    for (int i = 0; i < 12; ++i) sums[i / 4][i % 4] = start_sum(job);
    LOOP
    for (int left = columns.count[x]; left > 0; --left, levels += 3) {
        const ColumnWeights quad_weights(weights, columns.size);
        weights += ColumnWeights::words * columns.size;
        UNROLL
        for (int channel = 0; channel < 3; ++channel) {
            const Levels rows = levels[channel];
            UNROLL
            for (int row = 0; row < 4; ++row) add_levels(sums[channel][row], rows.of[row], quad_weights);
        }
    }
    UNROLL
    for (int channel = 0; channel < 3; ++channel)
        partials[channel * columns.size + x] = finish_columns(job, sums[channel]);
}

// Sums what is left of the source rows, for output line y of the tile. `partials` begins with the output column and the
// tile's first quad of rows; red, green and blue lie `stride` apart.
DEVICE unsigned int sum_rows(const Job &job, const Tile &rows, int y, const Partial *partials, int stride) {
    const Number *weights = rows.weights + y;
    partials += 3 * stride * rows.first[y];
#if ARITHMETIC == ROUNDED
    ColumnSum sums[3] = {start_sum(job), start_sum(job), start_sum(job)};
    LOOP
    for (int left = rows.count[y]; left > 0; --left, partials += 3 * stride) {
        const ColumnWeights quad_weights(weights, rows.size);
        weights += ColumnWeights::words * rows.size;
        UNROLL
        for (int channel = 0; channel < 3; ++channel)
            add_levels(sums[channel], partials[channel * stride], quad_weights);
    }
    return pack_clipped(sums[0].whole() >> job.shift, sums[1].whole() >> job.shift, sums[2].whole() >> job.shift, 0);
#else
    Number sums[3] = {0, 0, 0};
    LOOP
    for (int left = rows.count[y]; left > 0; --left, partials += 3 * stride) {
        const Weights quad_weights(weights, rows.size);
        weights += Weights::words * rows.size;
        UNROLL
        for (int channel = 0; channel < 3; ++channel) {
            const Partial part = partials[channel * stride];
            UNROLL
            for (int tap = 0; tap < 4; ++tap)
                sums[channel] = add_product(sums[channel], quad_weights.of[tap], part.of[tap]);
        }
    }
    return pack_clipped(finish_row(job, sums[0]), finish_row(job, sums[1]), finish_row(job, sums[2]), 0);
#endif
}

#endif

DEVICE const int4 *table_of(const Axis &axis, unsigned int index) {
    return reinterpret_cast<const int4 *>(axis.tables) + index * axis.table_quads;
}

// Copies the tables of one tile to shared memory; they are there once the threads have met.
DEVICE Tile copy_tile(const Axis &axis, unsigned int index, int4 *shared) {
    const int4 *source = table_of(axis, index) + axis.line_quads;
    LOOP
    for (int i = THREAD_INDEX; i < axis.table_quads - axis.line_quads; i += THREAD_COUNT) shared[i] = __ldg(source + i);
    const int *first = reinterpret_cast<const int *>(shared);
    const int size = axis.tile;
    const Tile tile = {first, first + size, first + 2 * size, reinterpret_cast<const Number *>(first + 3 * size), size};
    return tile;
}

extern "C" __global__ void __launch_bounds__(NUM_THREADS, BLOCKS) preprocess(const __grid_constant__ Batch batch) {
#ifdef ONE_THREAD
    if (threadIdx.x) return;
#endif
    const Job &job = batch.jobs[blockIdx.z];
    const int top = static_cast<int>(blockIdx.y) * job.rows.tile, height = min(job.rows.tile, job.rows.size - top);
    const int left = static_cast<int>(blockIdx.x) * job.columns.tile;
    const int width = min(job.columns.tile, job.columns.size - left);
    if (height <= 0 || width <= 0) return;  // another image of the launch has more tiles

    SHARED int4 shared[SHARED_WORDS / 4];
    const Tile rows = copy_tile(job.rows, blockIdx.y, shared);
    const Tile columns = copy_tile(job.columns, blockIdx.x, shared + job.columns_at);

#if ARITHMETIC == PICK
    SYNC();
#else
    Partial *partials = reinterpret_cast<Partial *>(shared + job.partials_at);
    Levels *levels = reinterpret_cast<Levels *>(shared + job.levels_at);
    const int4 *row_lines = table_of(job.rows, blockIdx.y), *column_lines = table_of(job.columns, blockIdx.x);
    const int num_rows = __ldg(row_lines++).x, num_columns = __ldg(column_lines++).x;
    int done = 0;
    do {  // once at least, since threads must meet before they use the tables
        const int end = min(job.chunk, num_rows - done);
        for (int row = GROUP; row < end; row += GROUPS)
            for (int column = LANE; column < num_columns; column += LANES)
                read_quad(job, __ldg(row_lines + done + row), __ldg(column_lines + column),
                          levels + 3 * (row * num_columns + column));
        SYNC();
        for (int row = GROUP; row < end; row += GROUPS)
            for (int x = LANE; x < width; x += LANES)
                sum_columns(job, columns, x, levels + 3 * row * num_columns,
                            partials + 3 * (done + row) * columns.size);
        SYNC();
        done += job.chunk;
    } while (done < num_rows);
#endif

    const unsigned int border = pack(job.border, job.border, job.border);
    for (int y = GROUP; y < height; y += GROUPS)
        for (int x = LANE; x < width; x += LANES) {
            const bool is_border = rows.count[y] == 0 || columns.count[x] == 0;
#if ARITHMETIC == PICK
            const unsigned int pixel = is_border ? border : read_pixel(job, rows.first[y], columns.first[x]);
#else
            const unsigned int pixel = is_border ? border : sum_rows(job, rows, y, partials + x, columns.size);
#endif
            write_pixel(job, rows.offset[y] + columns.offset[x], pixel);
        }
}
