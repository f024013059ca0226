// Package sim is a whole cluster in virtual time: nodes and gateways of several
// regions with real membership, real gRPC and real HTTP over one network in memory
// (node/member/membertest), real disks, a checksum database and an upstream that has
// moods, all inside one testing/synctest bubble. What runs in a node is what
// cmd/ringmod puts together: fills, copies, comparisons, scrubs, purges, hot keys, and
// the states from joining to leaving. The minutes of a cluster's life take a second.
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
//   - lose: as kill, and the machine never comes back. An operator forgets the node, at
//     some time or after healing, or the others do after 10 min.
//   - drain, join: as an operator does it; several nodes may join at once.
//   - an empty disk: killed, and back with nothing in its data folder.
//   - failing disks: each step of writing fails, or each read, or both (store's
//     DiskConfig.Fault), until it ends. A node that cannot read says that it does not
//     serve: to the checks it is out of reach, and for a minute after that.
//   - rot: files of objects are put into the places of others that differ by a bit.
//   - a limit: in some plans disks take 2 or 3 MiB, which is less than there is.
//   - purge, and the end of one: by an operator at a node that he can reach.
//   - crowds: many want what nobody has, or what all have, 66 times per second at each
//     gateway.
//
// A process that is killed still closes its disk in order: what power cuts do to that is
// for node/store to show. But the hints that it had not written yet are gone.
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
//     begins, freezes or thaws, changes its state, or whose disk begins or ends to fail.
//     A copy that is lost (evicted, purged, turned bad, with its disk) counts as a failure,
//     and so does a fetch by a node whose disk did not take it, or may not have. Without
//     any of these, it is fetched once. Once a fetch has failed, one more is granted for
//     each further region: when a coordinator elsewhere says that upstream is broken, each
//     region asks for itself, and they may do so at the same time. A mutable
//     answer is fetched once in its minute, unless something happened.
//   - I4: nobody fetches an immutable object that a rank of the region has on whose
//     behalf it is fetched, if that rank was there and within reach of all who may have
//     looked for it, by streams and packets, for a minute. Who wakes up still does what
//     it was asked before, which has been done by others since, and is let be for
//     a minute. No gateway fetches by itself
//     while it could reach a rank for a minute. What a member that comes out of a
//     cut or wakes up tells of others is no news, but it is believed for a moment:
//     the minute begins behind that too.
//   - I5: a minute after healing all members see each other and place alike.
//   - I6: no request makes more than two hops.
//   - I9: a mutable answer that is not marked stale is at most a minute old, by its Age
//     and by what upstream has published since. No gateway goes back to an older one.
//   - I7: after healing, an operator's scrub repairs all bad copies (in plans
//     without a limit; what a checksum database has said is got again when it is
//     needed). Within 15 min more all nodes are active or gone, and what any node of a
//     region holds is held by all its replicas of that region, with the right bytes: copies
//     return to R where there is at least one. A replica need not hold what it has
//     evicted, or has no room for: eviction is not loss. Others may hold it as well.
//     15 min are two rounds of comparisons, 6 min at most each, and the pause after pulls
//     that failed while all was broken. Where nobody forgets the lost, 11 min more.
//   - I8: what a node pulls stays below its rate in every window, as a bucket has it that
//     holds what its pullers read before they pay: 50 ms and 5 reads of 64 KiB. Some plans
//     pull 512 KiB/s, else it would not matter. What a scrub gets again and hot copies do
//     not go this way.
//   - I10: from 90 s after an operator's purge on nobody gets it, nor a list with it, from
//     a gateway that has reached all members for 90 s. After healing all members know
//     the purge, and no disk has a file of it: nobody brings it back. A purge that is lifted
//     may be unknown to some; after a minute it is no excuse for a no.
//   - I12: at each commit, the files below a data folder take at most the limit and 1 MiB,
//     which is more than the largest object.
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
