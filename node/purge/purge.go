// Package purge keeps removed what an operator has removed: a takedown, a secret that
// was published, a private module that has leaked.
//
// # Tombstones
//
// A purge is a Tombstone: a target, or the beginning of targets, with an epoch, which is
// a Lamport number. Of two for one name the one with the higher epoch wins; at the same
// epoch a purge wins over one that was lifted, then the greater text. So a Set is merged
// in any order, any number of times, with the same end. A tombstone that is not lifted
// outranks every copy: what it names is absent (cache.Purged), is not stored, and leaves
// lists; @latest is the newest version that is left. Several may name an object; all must
// be lifted. The records of checksum databases are never purged: they are proof and name
// nobody's bytes.
//
// At most MaxTombstones are kept, each for 30 days, lifted ones too; then what they name
// may be fetched again. A version takes three, a module two. Others are told ages, never
// times. A tombstone's age is no part of what is merged: everybody keeps the one by
// which it learnt of it, by its own monotonic clock while it runs.
//
// # On the disk
//
// They are in a file of their own beside the index, which may be lost: objects come back
// from files then, but those that a tombstone names are removed instead. What is there
// is written anew, synced and renamed before a purge is confirmed. Each line has a
// CRC-32C; a damaged one is left out, with a line in the log and the file kept.
//
// # Between nodes
//
// A purge is told to all nodes that are in, at once, and each confirms it when it is
// durable there and the objects are gone. Who has not is named. A Keeper asks every other
// node for what it does not know: when that one comes up, and once a minute, by a digest
// that costs nothing while the two agree. So those that were away, or on the other side
// of a split, learn of it.
//
// A node that starts asks before it serves. It waits for 5 s: if nobody can be asked by
// then it serves what it has, as the copies here may be all that can be reached, and
// applies what it hears as soon as it hears it. A node that was never told of others
// does not wait.
//
// # Away for longer than that
//
// What was purged, and forgotten after 30 days, while a node was away can no longer be
// told to it. Each node remembers when the latest purge was made that was forgotten
// since, and when it has last heard of another node. Who meets others that have forgotten
// a purge of a time at which it was not there removes all that it holds, before it
// serves, and begins anew: the others have it. Where nothing was forgotten, or all before
// the node left, nothing can be missing and nothing is removed. So a node that is alone,
// for however long, never loses anything: it purges for itself, and nobody else does.
package purge

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// Limits.
const (
	MaxTombstones = 16384
	MaxText       = 512 // bytes

	keep    = 30 * 24 * time.Hour
	maxName = 2048 // bytes (cluster.proto)
)

// Name is what a tombstone stands for.
type Name struct {
	Name   string // an escaped target
	Prefix bool   // all targets that begin with it
}

// Tombstone is a purge, or the end of one.
type Tombstone struct {
	Name

	Epoch  uint64
	Lifted bool
	Text   string    // why; "" = nobody said
	Made   time.Time // local clock; only good for an age
}

var (
	errSumdb  = errors.New("the records of a checksum database are not purged")
	errPrefix = errors.New("a prefix must have a slash, and nothing that a target cannot have")
	errEpoch  = errors.New("its epoch is out of bounds")
	errQuery  = errors.New("only a canonical version can be purged, such as v1.2.3; a branch or tag stands for one, see 'ringmod explain'")
)

// Check tells what is wrong with a name, in words for whoever has written it.
func (n Name) Check() error {
	switch {
	case strings.HasPrefix(n.Name, "sumdb/"):
		return errSumdb
	case !n.Prefix:
		_, err := target.Parse(n.Name)
		return err
	case len(n.Name) > maxName || strings.IndexByte(n.Name, '/') < 1 || !utf8.ValidString(n.Name) ||
		strings.ContainsFunc(n.Name, func(r rune) bool { return r == '\\' || unicode.IsControl(r) }):
		return errPrefix
	}
	for element := range strings.SplitSeq(strings.TrimSuffix(n.Name, "/"), "/") {
		if element == "" || element == "." || element == ".." {
			return errPrefix
		}
	}
	return nil
}

// matches tells whether n stands for a target.
func (n Name) matches(name string) bool {
	return n.Name == name || n.Prefix && strings.HasPrefix(name, n.Name)
}

func (n Name) compare(o Name) int {
	switch {
	case n.Prefix == o.Prefix:
		return cmp.Compare(n.Name, o.Name)
	case n.Prefix:
		return -1
	}
	return 1
}

// beats tells whether t wins over another one of the same name.
func (t Tombstone) beats(o Tombstone) bool {
	switch {
	case t.Epoch != o.Epoch:
		return t.Epoch > o.Epoch
	case t.Lifted != o.Lifted:
		return !t.Lifted
	default:
		return t.Text > o.Text
	}
}

// err is the answer to who asks for what t names.
func (t Tombstone) err() *cache.Error {
	text := "purged by an operator of this cache"
	if t.Text != "" {
		text += ": " + t.Text
	}
	return &cache.Error{Reason: cache.Purged, Text: text}
}

// CleanText returns a reason as tombstones hold it: one line that can be printed.
func CleanText(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(text, ""))
	return strings.ToValidUTF8(text[:min(len(text), MaxText)], "")
}

// Encode returns t as members tell it to each other.
func Encode(t Tombstone) *ringmodv1.Tombstone {
	return &ringmodv1.Tombstone{
		Name: t.Name.Name, Prefix: t.Prefix, Epoch: t.Epoch, Lifted: t.Lifted, Text: t.Text, Age: durationpb.New(ageOf(t.Made)),
	}
}

// Decode reads what another member tells.
func Decode(p *ringmodv1.Tombstone) (Tombstone, error) {
	t := Tombstone{
		Name:  Name{p.GetName(), p.GetPrefix()},
		Epoch: p.GetEpoch(), Lifted: p.GetLifted(), Text: CleanText(p.GetText()), Made: time.Now().Add(-max(0, p.GetAge().AsDuration())),
	}
	return t, t.check()
}

func (t Tombstone) check() error {
	err := t.Name.Check()
	if err == nil && (t.Epoch < 1 || t.Epoch > ring.MaxEpoch) {
		err = errEpoch
	}
	if err != nil {
		return fmt.Errorf("tombstone of %.80q: %w", t.Name.Name, err)
	}
	return nil
}

// ageOf returns how long ago t was, never less than nothing.
func ageOf(t time.Time) time.Duration { return max(0, time.Since(t)) }
