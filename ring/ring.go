// Package ring decides which nodes hold which keys, and nothing else: it is a
// pure function from a set of members to tables. It does no I/O, reads no
// clock, starts no goroutine and logs nothing, so that every process that holds
// the same members computes the same tables, on every CPU.
//
// A [Members] is the member table: it merges what members say about themselves.
// A [View] is what follows from it: two immutable [Table] values, a digest and
// a sequence number. [Plan] says what moves between two tables.
//
// What follows is the placement, algorithm 1, precise enough to write a second
// implementation. It may never change under the same algorithm number: a member
// that places keys elsewhere neither finds nor offers what the others hold. The
// files in testdata freeze it.
//
// # Hash
//
// H(x) is xxHash64 of the bytes x with the seed 0x72696e676d6f6401. Strings are
// UTF-8 bytes, u8, u16, u32 and u64 are big-endian integers of that many bits,
// and | joins bytes without a separator.
//
// # Partitions
//
// There are P = 4093 partitions. A key lies in partition H(key) mod P:
//
//	0x01 | escaped path | "@" | escaped version   .info, .mod and .zip of a canonical version
//	0x02 | escaped path                           list, latest and queries of a module
//	0x03 | database | rest                        checksum database, rest as in tile/8/0/000
//
// # Who takes part
//
// Only entries with role Node and the cluster's spec hash take part. The table
// Current is made of those that are Active or Leaving, Next of those that are
// Active or Joining. Up or down does not matter here: a node that died stays in
// the tables until somebody writes that it is Forgotten.
//
// Each region that has such members has its own ring, made of its own members
// only. Members are sorted by the bytes of their id throughout.
//
// # Rank 0, the owner
//
// A member with weight w is w pseudo-members named id|0, id|1 … id|w-1 (here |
// is the character). They are added in that order, members in id order, to
// github.com/buraksezer/consistent v1.0.0 with 4093 partitions, VirtualNodes as
// its ReplicationFactor, LoadPermille/1000 as its Load and H as its Hasher. In
// other words: unit u puts VirtualNodes points H(decimal(i) | ":" | name of u)
// on a circle of 64-bit numbers, where a later point replaces an earlier one of
// equal value. Partitions are placed in ascending order: partition p goes to the
// first point at or above H(p as a little-endian u64), wrapping around, whose
// unit has fewer than ceil(P / units * load) partitions. The owner is the member
// of that unit. (The library computes this bound in float64 with one division,
// one multiplication and one rounding up, which IEEE 754 defines to the bit.)
//
// # Ranks 1 and up
//
// All other members of the region are ordered by weighted rendezvous hashing.
// The hash of a member is h = H(0x10 | u16 partition | id), its cost is
//
//	C(h) = 64 * 2^32 - L(h|1),  L(x) = log2(x) * 2^32 in integers
//
// L is defined by this computation, and not by the mathematical logarithm: let n
// be the number of leading zero bits of x, m = x << n, l = 63 - n; then 32 times:
// q = the upper 64 bits of m*m, b = the top bit of q, m = q << (1-b), l = 2l + b.
// L(x) = l. C falls (weakly) as h rises.
//
// The member with the smaller C/weight comes first (compared as C1*weight2 <
// C2*weight1), then the one with the higher h, then the one with the smaller id.
// From that order the ranks are taken in two passes: first, each member whose
// zone no earlier rank has; second, the others. A missing zone is a zone of its
// own, the empty one, shared by all that have none.
//
// Ranks are computed up to Replicas+3, or to the number of members if that is
// less. The first Replicas of them are the replicas; the rest are spare.
//
// # Home regions
//
// The regions of a table are ordered for each partition by the same rendezvous
// with h = H(0x11 | u16 partition | region) and the home weight of the region (1
// unless the spec says otherwise). Regions with weight 0 come after all others,
// ordered by h and then by name, and are never home.
//
// # Limits
//
// The weights of a region add up to at most P/16 = 255. A cluster has at most 255
// regions. What is beyond is an error and not a guess.
package ring
