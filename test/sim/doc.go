// Package sim is a whole cluster in virtual time: nodes and gateways of several
// regions with real membership, real gRPC and real HTTP over one network in memory
// (node/member/membertest), stores in memory, a checksum database and an upstream
// that has moods, all inside one testing/synctest bubble. Two minutes of a cluster's
// life take half a second.
//
// # Seeds
//
// A seed decides everything that is decided (see draw): members, regions, zones, what
// is held in the beginning, who asks for what, who dies, freezes, is cut off or
// joins, how upstream behaves, when a version is published. How goroutines interleave
// it does not decide, so that a seed that fails once may pass the next time:
//
//	go test ./test/sim -run TestSeeds -first 17 -seeds 1 -count 20 -logs
//
// A seed that fails prints its plan. Copies are put onto ranks in the beginning by the
// test itself, besides what replication does.
//
// # What is simulated, and how
//
//   - kill: as kill -9. Connections break, nobody is told, what was not stored is
//     gone, the disk stays. The process comes back on the same address with a new
//     boot id.
//   - power: the same, but not even connections break.
//   - stop: as SIGTERM, in the order of cmd/ringmod.
//   - freeze: as SIGSTOP. Nothing that the process does is seen, nothing that is sent
//     to it is lost.
//   - cut: of packets, streams or both, one way or both, between any two groups, or
//     towards upstream. A stream that meets a cut never recovers.
//   - upstream's moods: see mood.
//
// # What is checked
//
// After the time of the plan everything heals, and a minute later everybody must be
// able to get everything. All that happened is then held against the invariants of
// the design (cluster.md 6):
//
//   - I1, I2: every body that came to its end is what upstream has under that name.
//     What a gateway passes on that reaches no node is what upstream has sent.
//   - I3: of the k fetches of an immutable object, the k-th is within the bound
//     1 + failures + opinions, where failures are the fetches of it that had
//     failed before, and opinions what happened from a minute before the first fetch
//     to the k-th that can make members differ about who coordinates: 2 for a cut
//     (both sides go on), 1 for the end of a cut, for a process that dies, stops,
//     begins, freezes or thaws. Without any of these, it is fetched once. A mutable
//     answer is fetched once in its minute, unless something happened.
//   - I4: nobody fetches an immutable object that a rank of the region has on whose
//     behalf it is fetched, if that rank was there and within reach of all who may have
//     looked for it, by streams and packets, for a minute. No gateway fetches by itself
//     while it could reach a rank for a minute. What a member that comes out of a
//     cut or wakes up tells of others is no news, but it is believed for a moment:
//     the minute begins behind that too.
//   - I5: a minute after healing all members see each other and place alike.
//   - I6: no request makes more than two hops.
//   - I9: a mutable answer that is not marked stale is at most a minute old, by its Age
//     and by what upstream has published since. No gateway goes back to an older one.
//   - I11: the bubble finds goroutines that are left, and nothing is left open: no file
//     of a store, no pending object, no spool.
//   - A client gets what it asked for if a rank of its region or a replica of another
//     had it and was within reach of the gateway, by streams and packets, for a minute;
//     or if upstream was well and within reach of all members for a minute, and any node
//     within reach of the gateway by streams. The minute is the
//     grace that is granted: breakers ask again after up to 10 s, gossip finds
//     those that are back within 30 s.
//   - What a rank of the gateway's region has all that time takes 10 s at most, what
//     one of another has 20 s: each node that is silent costs 3 s. Other regions are
//     asked behind an upstream that is slow.
//   - A client is told that there is no such object only if upstream has said so within
//     the last two minutes.
package sim
