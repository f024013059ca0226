package ring_test

import (
	"bytes"
	"flag"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/ringmod/ringmod/ring"
)

var update = flag.Bool("update", false, "rewrite testdata from what the code does; a changed placement strands every copy in every cluster")

// TestGolden runs the files of testdata. A file is a list of commands, each
// followed by ---- and what it prints, up to an empty line. Lines that begin
// with # are comments. The first line of a command is its name and options, the
// others are its input. A file has one member table, which its commands fill.
func TestGolden(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("got %d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := runScript(t, string(data))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o666); err != nil {
					t.Fatal(err)
				}
			} else if want := string(data); got != want {
				t.Errorf("%s: got\n%s\nwant\n%s", file, got, want)
			}
		})
	}
}

// runScript returns the script with the outputs that its commands have now.
func runScript(t *testing.T, script string) string {
	t.Helper()
	var out bytes.Buffer
	s := &golden{spec: ring.DefaultSpec()}
	for i, block := range strings.Split(strings.TrimRight(script, "\n"), "\n\n") {
		if i > 0 {
			out.WriteString("\n")
		}
		command, _, _ := strings.Cut(block+"\n", "\n----\n")
		var lines []string
		for line := range strings.Lines(command) {
			if !strings.HasPrefix(line, "#") {
				lines = append(lines, strings.TrimSpace(line))
			}
		}
		fmt.Fprintf(&out, "%s\n", strings.TrimRight(command, "\n"))
		if len(lines) > 0 {
			fmt.Fprintf(&out, "----\n%s", s.run(t, lines[0], lines[1:]))
		}
	}
	return out.String()
}

// golden is the state of one file.
type golden struct {
	spec    ring.Spec
	members ring.Members
}

// options are the key=value words of a line.
type options map[string]string

func parseLine(line string) (name string, o options) {
	o = options{}
	for i, word := range strings.Fields(line) {
		if key, value, ok := strings.Cut(word, "="); ok {
			o[key] = value
		} else if i == 0 {
			name = word
		}
	}
	return name, o
}

func (o options) number(t *testing.T, key string, missing int) int {
	t.Helper()
	if o[key] == "" {
		return missing
	}
	n, err := strconv.Atoi(o[key])
	if err != nil {
		t.Fatalf("%s: %v", key, err)
	}
	return n
}

func (o options) or(key, missing string) string {
	if value, ok := o[key]; ok {
		return value
	}
	return missing
}

func (s *golden) run(t *testing.T, line string, input []string) string {
	t.Helper()
	name, o := parseLine(line)
	switch name {
	case "spec":
		return s.runSpec(t, o)
	case "partition":
		return runPartition(t, input)
	case "nodes":
		for i := range o.number(t, "n", 1) {
			m := fmt.Sprintf("node-%03d weight=%d", i, 1+i%o.number(t, "weights", 1))
			if zones := o.number(t, "zones", 0); zones > 0 {
				m += fmt.Sprintf(" zone=z%d", i%zones)
			}
			s.put(t, m)
		}
		return ""
	case "put":
		var out strings.Builder
		for _, line := range input {
			fmt.Fprintf(&out, "%s\n", s.put(t, line))
		}
		return out.String()
	case "members":
		return s.runMembers()
	case "place":
		return s.runPlace(t, o)
	case "homes":
		return s.runHomes(t, o)
	case "plan":
		return s.runPlan(t, o)
	}
	t.Fatalf("unknown command %q", name)
	return ""
}

func (s *golden) runSpec(t *testing.T, o options) string {
	t.Helper()
	s.spec.Replicas = o.number(t, "replicas", s.spec.Replicas)
	s.spec.VirtualNodes = o.number(t, "virtual", s.spec.VirtualNodes)
	s.spec.LoadPermille = o.number(t, "load", s.spec.LoadPermille)
	for pair := range strings.SplitSeq(o["home"], ",") {
		if region, w, ok := strings.Cut(pair, ":"); ok {
			if s.spec.HomeWeights == nil {
				s.spec.HomeWeights = make(map[string]int)
			}
			s.spec.HomeWeights[region], _ = strconv.Atoi(w)
		}
	}
	if err := s.spec.Validate(); err != nil {
		return err.Error() + "\n"
	}
	return fmt.Sprintf("%08x\n", s.spec.Hash())
}

// runPartition reads lines of a class and its two strings.
func runPartition(t *testing.T, input []string) string {
	t.Helper()
	var out strings.Builder
	for _, line := range input {
		f := append(strings.Fields(line), "", "")
		switch f[0] {
		case "version":
			fmt.Fprintln(&out, ring.OfVersion(f[1], f[2]))
		case "module":
			fmt.Fprintln(&out, ring.OfModule(f[1]))
		case "sumdb":
			fmt.Fprintln(&out, ring.OfSumdb(f[1], f[2]))
		default:
			t.Fatalf("unknown key class %q", f[0])
		}
	}
	return out.String()
}

var (
	states = map[string]ring.State{
		"joining": ring.Joining, "active": ring.Active, "leaving": ring.Leaving,
		"left": ring.Left, "forgotten": ring.Forgotten,
	}
	roles = map[string]ring.Role{"node": ring.Node, "gateway": ring.Gateway}
)

// put merges the member that a line describes and says what came of it.
func (s *golden) put(t *testing.T, line string) string {
	t.Helper()
	id, o := parseLine(line)
	m := node(s.spec, id, o["zone"], o.number(t, "weight", 1))
	m.Region = o.or("region", m.Region)
	m.State = states[o.or("state", "active")]
	m.Role = roles[o.or("role", "node")]
	epoch, err := strconv.ParseUint(o.or("epoch", "1"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	m.Epoch = epoch
	m.Boot = o["boot"]
	m.Addr = o.or("addr", m.Addr)
	if o["spec"] == "other" {
		m.Spec++
	}
	changed, err := s.members.Put(m)
	if err != nil {
		return err.Error()
	}
	return map[bool]string{true: "changed", false: "kept"}[changed]
}

func (s *golden) runMembers() string {
	var out strings.Builder
	for _, m := range s.members.All() {
		fmt.Fprintf(&out, "%s epoch=%d %s boot=%s\n", m.ID, m.Epoch, m.State, m.Boot)
	}
	fmt.Fprintf(&out, "seq=%d\n", s.members.Seq())
	return out.String()
}

// runPlace prints each table as one hash and its first partitions in clear,
// replicas before the bar, spare ranks behind it.
func (s *golden) runPlace(t *testing.T, o options) string {
	t.Helper()
	v, err := ring.NewView(s.spec, &s.members)
	if err != nil {
		return err.Error() + "\n"
	}
	var out strings.Builder
	fmt.Fprintf(&out, "digest %016x\n", v.Digest())
	for _, table := range []struct {
		name string
		*ring.Table
	}{{"current", v.Current()}, {"next", v.Next()}} {
		for _, region := range table.Regions() {
			all := describe(table.Table, region, ring.Partitions)
			fmt.Fprintf(&out, "%s %s: %d members, hash %s\n", table.name, region, table.Size(region), hashOf(all))
			if table.name == "current" || o["next"] == "yes" {
				out.WriteString(describe(table.Table, region, o.number(t, "partitions", 4)))
			}
		}
	}
	return out.String()
}

func describe(table *ring.Table, region string, n int) string {
	var out strings.Builder
	for p := range ring.Partition(n) {
		fmt.Fprintf(&out, "%5d:", p)
		for k, i := range table.Ranks(region, p) {
			if k == table.ReplicaCount(region) {
				out.WriteString(" |")
			}
			out.WriteString(" " + table.Member(i).ID)
		}
		out.WriteString("\n")
	}
	return out.String()
}

func (s *golden) runHomes(t *testing.T, o options) string {
	t.Helper()
	v, err := ring.NewView(s.spec, &s.members)
	if err != nil {
		return err.Error() + "\n"
	}
	counts := make(map[string]int)
	var all strings.Builder
	for p := range ring.Partition(ring.Partitions) {
		counts[v.Current().Home(p)]++
		fmt.Fprintf(&all, "%5d: %s\n", p, strings.Join(v.Current().RegionOrder(p), " "))
	}
	first := strings.Join(strings.SplitAfter(all.String(), "\n")[:o.number(t, "partitions", 4)], "")
	return fmt.Sprintf("hash %s %v\n%s", hashOf(all.String()), counts, first)
}

// runPlan prints what moves from the current table to the next one.
func (s *golden) runPlan(t *testing.T, o options) string {
	t.Helper()
	v, err := ring.NewView(s.spec, &s.members)
	if err != nil {
		return err.Error() + "\n"
	}
	moves := ring.Plan(v.Current(), v.Next())
	var all, shown strings.Builder
	for i, g := range moves.Gains {
		line := fmt.Sprintf("%s %d: %s from %s\n", g.Region, g.Partition, g.Member, strings.Join(g.From, " "))
		all.WriteString(line)
		if i < o.number(t, "show", 3) {
			shown.WriteString(line)
		}
	}
	for i, d := range moves.Drops {
		line := fmt.Sprintf("%s %d: %s drops\n", d.Region, d.Partition, d.Member)
		all.WriteString(line)
		if i < o.number(t, "show", 3) {
			shown.WriteString(line)
		}
	}
	return fmt.Sprintf("%d gains, %d drops, hash %s\n%s", len(moves.Gains), len(moves.Drops), hashOf(all.String()), shown.String())
}

// hashOf is deliberately not the hash that the package places by.
func hashOf(s string) string {
	h := fnv.New64a()
	_, _ = h.Write([]byte(s))
	return fmt.Sprintf("%016x", h.Sum64())
}
