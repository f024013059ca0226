package ring

// Partitions is the number of partitions, P. It is a prime and part of the
// algorithm: it is fixed for the life of a cluster, for the same reason as the
// seed of the hash.
const Partitions = 4093

// Partition is a fixed part of the key space, from 0 to Partitions-1. It is the
// unit that moves between nodes.
type Partition uint16

// OfVersion returns the partition of a canonical version of a module: its
// .info, .mod and .zip lie together, so one node can answer all three. Both
// arguments are in escaped form (golang.org/x/mod/module.EscapePath and
// EscapeVersion). It does not allocate.
func OfVersion(escapedPath, escapedVersion string) Partition {
	return of(domainVersion, escapedPath, "@", escapedVersion)
}

// OfModule returns the partition of what changes about a module: its list, its
// latest version and its queries, so that one node refreshes them all. The path
// is in escaped form. It does not allocate.
func OfModule(escapedPath string) Partition {
	return of(domainModule, escapedPath)
}

// OfSumdb returns the partition of a part of a checksum database, for example
// of "sum.golang.org" and "tile/8/0/x001/234". It does not allocate.
func OfSumdb(database, rest string) Partition {
	return of(domainSumdb, database, rest)
}

func of(parts ...string) Partition {
	return Partition(hashStrings(parts...) % Partitions)
}
