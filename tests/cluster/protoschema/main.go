// Protoschema prints what Kubernetes' built-in types look like on the wire: for
// each field its protobuf number, its JSON name and its type, read by reflection
// from the struct tags of the API's own Go packages. addons/core/kubeproto.py
// reads protobuf bodies with it.
//
//	go run . > ../../../addons/core/kubernetes_schema.json
//
// Output: {"kinds": {"v1/Pod": "core/v1.Pod"}, "types": {"core/v1.Pod": [field...]}}.
// A field is [number, JSON name, kind, repetition, flags, type]:
//
//	kind        string, bytes, bool, int, double, message
//	repetition  "" one, "l" list, "m" map (the key is always a string)
//	flags       "o" left out of JSON when zero, "i" inlined into its parent
//	type        of a message
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"
	"reflect"
	"sort"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
)

type field [6]any

var (
	types       = map[string][]field{}
	kinds       = map[string]string{}
	unmarshaler = reflect.TypeFor[interface{ Unmarshal([]byte) error }]()
)

// Types that write themselves in a form of their own; kubeproto.py knows each
// by name.
var special = map[string]bool{
	"meta/v1.Time":                                  true,
	"meta/v1.MicroTime":                             true,
	"meta/v1.Duration":                              true,
	"meta/v1.FieldsV1":                              true,
	"api/resource.Quantity":                         true,
	"util/intstr.IntOrString":                       true,
	"pkg/runtime.RawExtension":                      true,
	"apiextensions/v1.JSON":                         true,
	"apiextensions/v1.JSONSchemaPropsOrArray":       true,
	"apiextensions/v1.JSONSchemaPropsOrBool":        true,
	"apiextensions/v1.JSONSchemaPropsOrStringArray": true,
}

func main() {
	all := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		scheme.AddToScheme, apiextensionsv1.AddToScheme, apiregistrationv1.AddToScheme,
	} {
		if err := add(all); err != nil {
			log.Fatal(err)
		}
	}
	for gvk, goType := range all.AllKnownTypes() {
		if wanted(gvk, goType) {
			kinds[gvk.GroupVersion().String()+"/"+gvk.Kind] = name(goType)
			describe(goType)
		}
	}
	out, err := json.Marshal(map[string]any{"kinds": kinds, "types": types})
	if err != nil {
		log.Fatal(err)
	}
	// One line a type, so that a new Kubernetes version makes a readable diff.
	text := strings.NewReplacer(`]],"`, "]],\n\"", `"types":{`, "\"types\":{\n").Replace(string(out))
	fmt.Fprintln(os.Stdout, text)
}

// wanted leaves out what nobody sends as a body: lists, watch events, and the
// options that travel in the query.
func wanted(gvk schema.GroupVersionKind, goType reflect.Type) bool {
	if gvk.Version == runtime.APIVersionInternal || !reflect.PointerTo(goType).Implements(unmarshaler) {
		return false
	}
	if strings.HasSuffix(gvk.Kind, "List") {
		return false
	}
	switch gvk.Kind {
	case "DeleteOptions":
		return true
	case "WatchEvent", "Status", "APIVersions", "APIGroup", "APIGroupList", "APIResourceList":
		return false
	}
	return !strings.HasSuffix(gvk.Kind, "Options")
}

// name is the last two parts of the Go package and the type: core/v1.Pod.
func name(goType reflect.Type) string {
	parts := strings.Split(goType.PkgPath(), "/")
	return strings.Join(parts[max(0, len(parts)-2):], "/") + "." + goType.Name()
}

func describe(goType reflect.Type) {
	id := name(goType)
	if _, done := types[id]; done || special[id] {
		if id == "apiextensions/v1.JSONSchemaPropsOrArray" {
			describe(reflect.TypeFor[apiextensionsv1.JSONSchemaProps]())
		}
		return
	}
	types[id] = []field{} // before its fields: types may hold themselves
	if goType.Kind() == reflect.Slice {
		// `type Verbs []string` writes itself as a message with one list.
		if goType.Elem().Kind() != reflect.String {
			log.Fatalf("%s: a list of %s", id, goType.Elem())
		}
		types[id] = []field{{1, "items", "string", "l", "i", ""}}
		return
	}
	fields := []field{}
	for member := range goType.NumField() {
		if f, ok := describeField(id, goType.Field(member)); ok {
			fields = append(fields, f)
		}
	}
	sort.Slice(fields, func(a, b int) bool { return fields[a][0].(int) < fields[b][0].(int) })
	types[id] = fields
}

func describeField(id string, member reflect.StructField) (field, bool) {
	tag, ok := member.Tag.Lookup("protobuf")
	if !ok {
		if member.Type.Name() != "TypeMeta" && member.IsExported() {
			log.Fatalf("%s.%s: no protobuf tag", id, member.Name)
		}
		return field{}, false
	}
	if tag == "-" {
		return field{}, false
	}
	number, err := strconv.Atoi(strings.Split(tag, ",")[1])
	if err != nil {
		log.Fatalf("%s.%s: %v", id, member.Name, err)
	}
	jsonName, options, _ := strings.Cut(member.Tag.Get("json"), ",")
	flags := ""
	goType, pointer := member.Type, false
	if goType.Kind() == reflect.Pointer {
		goType, pointer = goType.Elem(), true
	}
	if strings.Contains(options, "omitempty") && !pointer {
		flags += "o"
	}
	if strings.Contains(options, "inline") {
		flags += "i"
	}
	if jsonName == "" && !strings.Contains(flags, "i") {
		log.Fatalf("%s.%s: no JSON name", id, member.Name)
	}
	repetition := ""
	switch {
	case isMessage(goType):
	case goType.Kind() == reflect.Slice && goType.Elem().Kind() != reflect.Uint8:
		repetition, goType = "l", goType.Elem()
	case goType.Kind() == reflect.Map:
		if goType.Key().Kind() != reflect.String {
			log.Fatalf("%s.%s: a map by %s", id, member.Name, goType.Key())
		}
		repetition, goType = "m", goType.Elem()
	}
	if goType.Kind() == reflect.Pointer {
		goType = goType.Elem()
	}
	kind, of := kindOf(goType)
	if kind == "" {
		log.Fatalf("%s.%s: cannot say what a %s is on the wire", id, member.Name, goType)
	}
	return field{number, jsonName, kind, repetition, flags, of}, true
}

func kindOf(goType reflect.Type) (kind, of string) {
	if isMessage(goType) {
		describe(goType)
		return "message", name(goType)
	}
	switch goType.Kind() {
	case reflect.String:
		return "string", ""
	case reflect.Bool:
		return "bool", ""
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Uint8, reflect.Uint32, reflect.Uint64:
		return "int", ""
	case reflect.Float32, reflect.Float64:
		return "double", ""
	case reflect.Slice:
		if goType.Elem().Kind() == reflect.Uint8 {
			return "bytes", ""
		}
	}
	return "", ""
}

// isMessage: Unmarshal decides, for a `type Verbs []string` has it too.
func isMessage(goType reflect.Type) bool {
	return reflect.PointerTo(goType).Implements(unmarshaler)
}
