package server

import (
	"io"

	"github.com/sirupsen/logrus"
	"k8s.io/klog/v2"
)

// routeLogrus sends what libcontainer logs to our log: its warnings as lines an
// operator sees, the rest at a level at which somebody looks for it.
func routeLogrus(log klog.Logger) {
	logrus.SetOutput(io.Discard)
	logrus.StandardLogger().ReplaceHooks(logrus.LevelHooks{})
	logrus.AddHook(logrusHook{log})
}

type logrusHook struct{ log klog.Logger }

func (logrusHook) Levels() []logrus.Level { return logrus.AllLevels }

func (h logrusHook) Fire(e *logrus.Entry) error {
	kv := []any{"text", e.Message}
	if err, ok := e.Data[logrus.ErrorKey].(error); ok {
		kv = append(kv, "err", err)
	}
	switch {
	case e.Level <= logrus.WarnLevel:
		h.log.Info("Warned by libcontainer", kv...)
	default:
		h.log.V(4).Info("Told by libcontainer", kv...)
	}
	return nil
}
