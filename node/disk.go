package node

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/module"

	"github.com/ringmod/ringmod/node/store"
)

// ClassOf returns what objects are worth when the disk is full: those of modules that
// match the private patterns more than others.
func ClassOf(private string) func(name string) store.Class {
	return func(name string) store.Class {
		escaped, _, ok := strings.Cut(name, "/@v/")
		path, err := module.UnescapePath(escaped)
		if ok && err == nil && module.MatchPrefixPatterns(private, path) {
			return store.Private
		}
		return store.Public
	}
}

// RegisterDisk registers metrics of a disk.
func RegisterDisk(reg prometheus.Registerer, usage func() store.Usage) {
	reg.MustRegister(diskMetrics{usage})
}

// diskMetrics are made when somebody asks.
type diskMetrics struct{ usage func() store.Usage }

//nolint:gochecknoglobals // descriptions are constant
var (
	diskObjects  = prometheus.NewDesc("ringmod_disk_objects", "Objects on the disk.", nil, nil)
	diskBytes    = prometheus.NewDesc("ringmod_disk_bytes", "Bytes that count against the limit: objects, index, and what is reserved.", nil, nil)
	diskReserved = prometheus.NewDesc("ringmod_disk_reserved_bytes", "Bytes reserved for objects that are being written.", nil, nil)
	diskLimit    = prometheus.NewDesc("ringmod_disk_limit_bytes", "Bytes that may be taken, which is less when others fill the file system; 0 is any.", nil, nil)
	diskHot      = prometheus.NewDesc("ringmod_disk_hot_bytes", "Of the bytes that count, copies of what other nodes own and many ask for.", nil, nil)
	diskReadOnly = prometheus.NewDesc("ringmod_disk_read_only", "1 while the disk is full or failing, so that nothing new is stored.", nil, nil)
	diskDead     = prometheus.NewDesc("ringmod_disk_dead", "1 while the disk cannot be read, so that nothing on it is served.", nil, nil)
	diskEvicted  = prometheus.NewDesc("ringmod_disk_evicted_objects_total", "Objects evicted for want of room, by class (orphaned, public, private, lasting).", []string{"class"}, nil)
	diskFreed    = prometheus.NewDesc("ringmod_disk_evicted_bytes_total", "Bytes of the objects evicted for want of room, by class.", []string{"class"}, nil)
)

// Describe implements prometheus.Collector.
func (diskMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{diskObjects, diskBytes, diskReserved, diskLimit, diskHot, diskReadOnly, diskDead, diskEvicted, diskFreed} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m diskMetrics) Collect(ch chan<- prometheus.Metric) {
	u := m.usage()
	for d, value := range map[*prometheus.Desc]int64{
		diskObjects: u.Objects, diskBytes: u.Taken, diskReserved: u.Reserved, diskLimit: u.Limit, diskHot: u.Hot,
		diskReadOnly: one(u.ReadOnly), diskDead: one(u.Dead),
	} {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(value))
	}
	for class, e := range u.Evicted {
		label := store.Class(class).String()
		ch <- prometheus.MustNewConstMetric(diskEvicted, prometheus.CounterValue, float64(e.Objects), label)
		ch <- prometheus.MustNewConstMetric(diskFreed, prometheus.CounterValue, float64(e.Bytes), label)
	}
}

// one is 1 for what is so.
func one(so bool) int64 {
	if so {
		return 1
	}
	return 0
}
