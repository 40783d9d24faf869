package kubelet

import (
	"fmt"
	"strings"

	"github.com/cridproject/crid/test/e2e"
)

// testNames is about names that a pod has and knows, and what it is told of itself.
func (k *kubelet) testNames() {
	k.runWith("names", `
		labels: {app: web, tier: front}
		annotations: {note: "of\nlines"}
	`, `
		hostname: web
		subdomain: sub
		setHostnameAsFQDN: true
		hostAliases:
		- {ip: 192.0.2.7, hostnames: [db.example, db]}
		dnsPolicy: None
		dnsConfig:
			nameservers: [192.0.2.53]
			searches: [corp.example]
			options: [{name: ndots, value: "3"}]
		volumes:
		- name: about
			downwardAPI:
				items:
				- {path: labels, fieldRef: {fieldPath: metadata.labels}}
				- {path: note, fieldRef: {fieldPath: "metadata.annotations['note']"}}
				- {path: memory, resourceFieldRef: {containerName: main, resource: limits.memory, divisor: 1Mi}}
		containers:
		- name: main
			image: IMAGE
			command: [sleep, "1000"]
			resources: {limits: {memory: 64Mi, cpu: 500m}}
			volumeMounts: [{name: about, mountPath: /about}]
			env:
			- {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
			- {name: SPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
			- {name: ID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
			- {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
			- {name: NODE_IP, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
			- {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
			- {name: IPS, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}
			- {name: APP, valueFrom: {fieldRef: {fieldPath: "metadata.labels['app']"}}}
			- {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}}
			- {name: URL, value: "http://$(APP).$(SPACE)/$(NONE)?$$(APP)"}
	`)
	k.run("names-by-default", `
		hostnameOverride: given
		containers:
		- name: main
			image: IMAGE
			command: [sleep, "1000"]
	`)
	p := k.await("names", "is ready", ready)
	const full = "web.sub.default.svc.cluster.local"
	k.says("names", "main", full+"\n", "hostname")
	k.says("names", "main", "search corp.example\nnameserver 192.0.2.53\noptions ndots:3\n", "cat", "/etc/resolv.conf")
	hosts := k.exec("names", "main", "cat", "/etc/hosts")
	for _, line := range []string{"# Kubernetes-managed hosts file.\n", p.Status.PodIP + "\t" + full + "\tweb\n", "192.0.2.7\tdb.example\tdb\n"} {
		if !strings.Contains(hosts, line) {
			k.t.Errorf("/etc/hosts has no line %q:\n%s", line, hosts)
		}
	}
	var ips []string
	for _, ip := range p.Status.PodIPs {
		ips = append(ips, ip.IP)
	}
	if len(ips) != 2 || ips[0] != p.Status.PodIP {
		k.t.Errorf("the pod's addresses are %v, the first %s; want one of each family", ips, p.Status.PodIP)
	}
	k.says("names", "main", fmt.Sprintf("names-node default %s node %s %s %s web 500 http://web.default/$(NONE)?$(APP)\n",
		p.UID, e2e.NodeAddress, p.Status.PodIP, strings.Join(ips, ",")),
		"sh", "-c", "echo $POD $SPACE $ID $NODE $NODE_IP $IP $IPS $APP $CPU $URL")
	k.says("names", "main", "app=\"web\"\ntier=\"front\"|of\nlines|64", "sh", "-c", "cd /about; cat labels; echo -n '|'; cat note; echo -n '|'; cat memory")

	p = k.await("names-by-default", "is ready", ready)
	k.says("names-by-default", "main", "given\n", "hostname")
	if got := k.exec("names-by-default", "main", "cat", "/etc/hosts"); !strings.Contains(got, p.Status.PodIP+"\tgiven\n") {
		k.t.Errorf("/etc/hosts does not name the pod: %s", got)
	}
	resolv := k.exec("names-by-default", "main", "cat", "/etc/resolv.conf")
	if !strings.HasPrefix(resolv, "search default.svc.cluster.local svc.cluster.local cluster.local") ||
		!strings.HasSuffix(resolv, "nameserver 10.96.0.10\noptions ndots:5\n") {
		k.t.Errorf("/etc/resolv.conf is %q", resolv)
	}
}
