// Which library a node is connected to, read off the graph as it stands; nothing is run.
import { CREATE, LOAD } from './kinds.mjs'

export const LIBRARY = 'SEQLORA_LIBRARY'
const OPENERS = [CREATE, LOAD]
const PRIMITIVES = ['PrimitiveNode', 'PrimitiveString', 'PrimitiveStringMultiline']
const [MUTED, BYPASSED] = [2, 4]
const LONGEST = 1000 // nodes on the way; a graph may be wired in a circle

// The name, '' where only a run can know it, or null where no library is connected.
export function libraryOf(app, node) {
  let place = origin(app, node, slot(node, 'library'), [])
  if (!place) return null
  for (let steps = 0; place && steps < LONGEST; steps++) {
    const { node: at, hosts } = place
    if (at.mode === MUTED) return ''
    if (at.mode !== BYPASSED && OPENERS.includes(at.type)) return String(nameOf(app, at, hosts) ?? '').trim()
    // What trains into a library, removes from it, or only hands it on.
    const input = at.inputs.findIndex(({ type }) => type === LIBRARY)
    place = origin(app, at, input < 0 && at.isVirtualNode ? 0 : input, hosts)
  }
  return ''
}

function nameOf(app, opener, hosts) {
  const own = slot(opener, 'name')
  if (opener.inputs[own]?.link == null) return opener.widgets.find(({ name }) => name === 'name')?.value
  const place = origin(app, opener, own, hosts)
  if (place?.widget) return place.widget.value
  return place && PRIMITIVES.includes(place.node.type) ? place.node.widgets?.[0]?.value : ''
}

function slot(node, wanted) {
  return node.inputs.findIndex(({ name }) => name === wanted)
}

/**
 * Where an input comes from: { node, hosts }, or { widget } where it is a widget of the subgraph node outside, or null.
 * `hosts` are the subgraph nodes that the walk went into and is still inside of.
 * @returns {{ node?: any, hosts?: any[], widget?: any } | null}
 */
function origin(app, node, input, hosts) {
  let { graph } = node
  let link = graph.getLink(node.inputs[input]?.link)
  while (link) {
    if (link.originIsIoNode) {
      const host = hosts.at(-1) ?? hostOf(app, graph)
      const outer = host?.inputs[link.origin_slot]
      if (outer && outer.link == null) {
        const widget = host.getWidgetFromSlot(outer)
        return widget ? { widget } : null
      }
      hosts = hosts.slice(0, -1)
      graph = host?.graph
      link = graph?.getLink(outer.link)
      continue
    }
    const found = graph.getNodeById(link.origin_id)
    if (!found?.isSubgraphNode?.()) return found ? { node: found, hosts } : null
    hosts = [...hosts, found]
    graph = found.subgraph
    link = graph.getLink(graph.outputs[link.origin_slot]?.linkIds[0])
  }
  return null
}

// A subgraph may be used in several places; seen from inside, the first stands for all.
function hostOf(app, graph) {
  return allNodes(app).find((node) => node.isSubgraphNode?.() && node.subgraph === graph)
}

// Of the open workflow, those inside of subgraphs too.
export function allNodes(app) {
  return app.rootGraph ? [app.rootGraph, ...app.rootGraph.subgraphs.values()].flatMap(({ nodes }) => nodes) : []
}
