package purge

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/ringmod/ringmod/node/store"
)

// The file has a line that names its format, then a line for each record: the CRC-32C of
// what follows the space, in 8 hex digits, and JSON.
const (
	fileHead = "ringmod tombstones "
	format   = "1"
	maxFile  = 256 << 20 // bytes; MaxTombstones of the longest names take a third
)

//nolint:gochecknoglobals // a table that never changes
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// State is what a node keeps of purges.
type State struct {
	Tombstones []Tombstone
	Epoch      uint64    // the highest ever seen
	Forgotten  time.Time // when the latest purge was made that is not kept any more; zero: there was none
	Heard      time.Time // when another node was heard of last; zero: never
}

// record is a line of the file: with a name that of a tombstone, else what holds for all.
type record struct {
	Name   string    `json:"name,omitempty"`
	Prefix bool      `json:"prefix,omitempty"`
	Epoch  uint64    `json:"epoch"`
	Lifted bool      `json:"lifted,omitempty"`
	Made   time.Time `json:"made,omitzero"`
	Text   string    `json:"text,omitempty"`

	Forgotten time.Time `json:"forgotten,omitzero"`
	Heard     time.Time `json:"heard,omitzero"`
}

// EncodeState returns the file of s.
func EncodeState(s State) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(fileHead + format + "\n")
	if err := appendRecord(&b, record{Epoch: s.Epoch, Forgotten: s.Forgotten.UTC(), Heard: s.Heard.UTC()}); err != nil {
		return nil, err
	}
	for _, t := range s.Tombstones {
		r := record{Name: t.Name.Name, Prefix: t.Prefix, Epoch: t.Epoch, Lifted: t.Lifted, Made: t.Made.UTC(), Text: t.Text}
		if err := appendRecord(&b, r); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

func appendRecord(b *bytes.Buffer, r record) error {
	line, err := json.Marshal(r)
	if err == nil {
		fmt.Fprintf(b, "%08x %s\n", crc32.Checksum(line, castagnoli), line)
	}
	return err
}

var errFormat = errors.New("not a file of tombstones, or of a newer version of ringmod")

// DecodeState reads a file and tells how many lines are damaged and so left out. The error
// says that it is no such file.
func DecodeState(b []byte) (s State, damaged int, err error) {
	head, rest, _ := bytes.Cut(b, []byte("\n"))
	if string(head) != fileHead+format || len(b) > maxFile {
		return State{}, 0, errFormat
	}
	for line := range bytes.Lines(rest) {
		r, err := parseRecord(line)
		switch {
		case err != nil, len(s.Tombstones) >= MaxTombstones:
			damaged++
		case r.Name == "":
			s.Epoch, s.Forgotten, s.Heard = max(s.Epoch, r.Epoch), r.Forgotten, r.Heard
		default:
			s.Tombstones = append(s.Tombstones, r.tombstone())
			s.Epoch = max(s.Epoch, r.Epoch)
		}
	}
	return s, damaged, nil
}

var errDamaged = errors.New("a damaged line")

func parseRecord(line []byte) (r record, err error) {
	sum, text, ok := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte(" "))
	if !ok || string(sum) != fmt.Sprintf("%08x", crc32.Checksum(text, castagnoli)) {
		return r, errDamaged
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, err
	}
	for _, at := range []time.Time{r.Made, r.Forgotten, r.Heard} {
		if year := at.UTC().Year(); year < 1 || year > 9999 { // JSON has no others
			return r, errDamaged
		}
	}
	if r.Name == "" {
		return r, nil
	}
	return r, r.tombstone().check()
}

func (r record) tombstone() Tombstone {
	return Tombstone{Name: Name{r.Name, r.Prefix}, Epoch: r.Epoch, Lifted: r.Lifted, Text: CleanText(r.Text), Made: r.Made}
}

// File keeps a State under this name; "" keeps nothing.
type File string

// Load reads the file; absence is the zero State. Damaged lines are left out, logged, and
// the file is kept under another name.
func (f File) Load(log *slog.Logger) (State, error) {
	if f == "" {
		return State{}, nil
	}
	b, err := os.ReadFile(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return State{}, nil
	}
	if err != nil {
		return State{}, fmt.Errorf("reading what has been purged: %w", err)
	}
	s, damaged, err := DecodeState(b)
	if err != nil {
		return State{}, fmt.Errorf("reading what has been purged from %s: %w; remove the file to begin without", string(f), err)
	}
	if damaged > 0 {
		aside := string(f) + ".damaged"
		log.Error("lines are damaged of the file of what has been purged: purges that no other node knows are lost", "path", string(f), "aside", aside, "lines", damaged)
		if err := store.ReplaceFile(aside, b); err != nil {
			log.Error("the damaged file is not kept", "path", aside, "err", err)
		}
	}
	// Times from the future come from a clock that was set back.
	now := time.Now()
	for i, t := range s.Tombstones {
		s.Tombstones[i].Made = earlier(t.Made, now)
	}
	s.Forgotten, s.Heard = earlier(s.Forgotten, now), earlier(s.Heard, now)
	return s, nil
}

func earlier(a, b time.Time) time.Time {
	if a.After(b) {
		return b
	}
	return a
}

// Save replaces the file, durably.
func (f File) Save(s State) error {
	if f == "" {
		return nil
	}
	b, err := EncodeState(s)
	if err != nil {
		return err
	}
	return store.ReplaceFile(string(f), b)
}

// Restore returns a Set with what a State has.
func Restore(s State) *Set {
	set := NewSet()
	set.epoch, set.forgotten = s.Epoch, s.Forgotten
	for _, t := range s.Tombstones {
		set.seq++
		if old := set.all[t.Name]; old == nil || t.beats(old.Tombstone) {
			set.all[t.Name] = &known{t, set.seq}
		}
	}
	set.expire()
	set.mu.Lock()
	defer set.mu.Unlock()
	set.publish()
	return set
}

// state returns what is to be kept of s.
func (s *Set) state() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	state := State{Epoch: s.epoch, Forgotten: s.forgotten}
	for _, k := range s.all {
		state.Tombstones = append(state.Tombstones, k.Tombstone)
	}
	slices.SortFunc(state.Tombstones, func(a, b Tombstone) int { return strings.Compare(a.Name.Name, b.Name.Name) })
	return state
}
