package metrics

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Sources is who is asked at each scrape. All are required; none but Monitor may wait.
type Sources struct {
	// Sandboxes and Containers are how many there are in each state; a state without
	// any is in it, with 0.
	Sandboxes, Containers func() map[string]int
	// Subscribers is who listens to events now, and how many were dropped since the
	// start because they were too slow.
	Subscribers func() (now int, dropped uint64)
	// Images is how many images there are and what their layers take of the disk.
	Images func() (count int, bytes uint64)
	// MonitorPID is the monitor's process; an error when there is none.
	MonitorPID func() (int, error)
	// Monitor is the monitor's own figures; an error when there is none.
	Monitor func(context.Context) (Monitor, error)
	// MonitorRestarts is how often another monitor was found than the one before.
	MonitorRestarts func() uint64
}

// Monitor is the monitor's figures, since its start.
type Monitor struct {
	Containers, Execs, Holders                 int
	LogBytes, LogDroppedBytes, LogLimitedBytes uint64
	LogLimitedRecords, LogErrors               uint64
}

// monitorLimit bounds what a scrape waits for the monitor.
const monitorLimit = 2 * time.Second

// states asks Sources. Figures of a monitor that does not answer are left out, and
// crid_monitor_up says so.
type states struct {
	o Sources

	sandboxes, containers, subscribers, dropped, images, imageBytes, up, restarts *prometheus.Desc

	monitor []monitorFigure
}

// monitorFigure is one of Monitor.
type monitorFigure struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	of   func(*Monitor) float64
}

func newStates(o Sources) *states {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	gauge := func(name, help string, of func(*Monitor) int) monitorFigure {
		return monitorFigure{desc(name, help), prometheus.GaugeValue, func(m *Monitor) float64 { return float64(of(m)) }}
	}
	counter := func(name, help string, of func(*Monitor) uint64) monitorFigure {
		return monitorFigure{desc(name, help), prometheus.CounterValue, func(m *Monitor) float64 { return float64(of(m)) }}
	}
	return &states{
		o:           o,
		sandboxes:   desc("crid_sandboxes", "Pod sandboxes on record, by state.", "state"),
		containers:  desc("crid_containers", "Containers on record, by state.", "state"),
		subscribers: desc("crid_event_subscribers", "Clients that GetContainerEvents serves."),
		dropped:     desc("crid_event_subscribers_dropped_total", "Clients of events that were dropped because they were too slow."),
		images:      desc("crid_images", "Images in the store."),
		imageBytes:  desc("crid_image_store_bytes", "Disk space that the images' layers take, each layer once."),
		up:          desc("crid_monitor_up", "1 if crid-monitor answers, else 0."),
		restarts:    desc("crid_monitor_restarts_total", "How often crid found another crid-monitor process than before, since its own start."),
		monitor: []monitorFigure{
			gauge("crid_monitor_containers", "Containers that crid-monitor holds, exited ones that are not yet removed included.",
				func(m *Monitor) int { return m.Containers }),
			gauge("crid_monitor_execs", "Execs that run.", func(m *Monitor) int { return m.Execs }),
			gauge("crid_monitor_pid_namespaces", "PID namespaces that crid-monitor holds for pods.", func(m *Monitor) int { return m.Holders }),
			counter("crid_monitor_log_written_bytes_total", "Bytes written to logs of containers.", func(m *Monitor) uint64 { return m.LogBytes }),
			counter("crid_monitor_log_write_errors_total", "Writes to logs of containers that failed.", func(m *Monitor) uint64 { return m.LogErrors }),
			counter("crid_monitor_log_dropped_bytes_total", "Bytes of logs that were lost because they could not be written.",
				func(m *Monitor) uint64 { return m.LogDroppedBytes }),
			counter("crid_monitor_log_limited_bytes_total", "Bytes of logs that were dropped because of log_rate_limit.",
				func(m *Monitor) uint64 { return m.LogLimitedBytes }),
			counter("crid_monitor_log_limited_records_total", "Records of logs, lines or parts of long ones, that were dropped because of log_rate_limit.",
				func(m *Monitor) uint64 { return m.LogLimitedRecords }),
		},
	}
}

// Describe implements prometheus.Collector.
func (s *states) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{s.sandboxes, s.containers, s.subscribers, s.dropped, s.images, s.imageBytes, s.up, s.restarts} {
		c <- d
	}
	for _, f := range s.monitor {
		c <- f.desc
	}
}

// Collect implements prometheus.Collector.
func (s *states) Collect(c chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		c <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	for state, n := range s.o.Sandboxes() {
		send(s.sandboxes, prometheus.GaugeValue, float64(n), state)
	}
	for state, n := range s.o.Containers() {
		send(s.containers, prometheus.GaugeValue, float64(n), state)
	}
	now, dropped := s.o.Subscribers()
	send(s.subscribers, prometheus.GaugeValue, float64(now))
	send(s.dropped, prometheus.CounterValue, float64(dropped))
	images, bytes := s.o.Images()
	send(s.images, prometheus.GaugeValue, float64(images))
	send(s.imageBytes, prometheus.GaugeValue, float64(bytes))
	send(s.restarts, prometheus.CounterValue, float64(s.o.MonitorRestarts()))

	ctx, cancel := context.WithTimeout(context.Background(), monitorLimit)
	defer cancel()
	m, err := s.o.Monitor(ctx)
	if err != nil {
		send(s.up, prometheus.GaugeValue, 0)
		return
	}
	send(s.up, prometheus.GaugeValue, 1)
	for _, f := range s.monitor {
		send(f.desc, f.kind, f.of(&m))
	}
}
