// The training panel: which trainings the server tells of, on which node each is shown, and what is said when one ends.
// A node that never trained has no panel, and nothing of a panel is saved with a workflow.
import { forwardToCanvas, hosted } from '../shared/dom_widget.mjs'
import { followed, running } from './state.mjs'
import { trainingView } from './view.mjs'

const KIND = 'SeqLoRA_TrainConcept'

export function panel({ app, api, t }) {
  const trainings = new Map() // the last one of each node, by workflow and node
  const shown = new WeakMap() // node -> its panel
  const announced = new Set() // ids of trainings whose end was told

  // `whole`: the state with its whole history, as asked for; otherwise an event, with what is new.
  function take(told, whole) {
    const place = `${told.workflow} ${told.node}`
    const known = trainings.get(place)
    const before = known?.id === told.id ? known : null
    const now = followed(before, told, whole)
    trainings.set(place, now)
    show(now)
    if (!running(now) && (!whole || (before && running(before)))) announce(now)
    if (!whole && !before && told.phase !== 'starting') catchUp() // its beginning was told to others
  }

  async function catchUp() {
    const answer = await api.fetchApi('/seqlora/training')
    if (!answer.ok) return
    for (const told of (await answer.json()).trainings) take(told, true)
  }

  function show(training) {
    if (training.workflow && training.workflow !== app.rootGraph.id) return
    const node = nodeAt(app.rootGraph, training.node)
    if (node?.type !== KIND) return
    if (!shown.has(node)) {
      const view = trainingView({ t, keep, cancel, picture })
      forwardToCanvas(view.element, app)
      shown.set(node, { view, fit: hosted(app, node, 'seqlora_training', view.element) })
    }
    const { view, fit } = shown.get(node)
    view.show(training, fit)
  }

  function announce(training) {
    if (announced.has(training.id) || training.phase === 'cancelled') return
    announced.add(training.id)
    const failed = training.phase === 'failed'
    app.extensionManager.toast.add({
      severity: failed ? 'error' : 'success',
      summary: t(failed ? 'panel.toast.failed' : 'panel.toast.finished', training),
      detail: failed ? training.note : t('panel.ended.finished', training),
      life: failed ? 20_000 : 8_000
    })
  }

  // Both answer the sentence of what went wrong, or nothing.
  async function keep(training) {
    const answer = await api.fetchApi(`/seqlora/train/${encodeURIComponent(training.node)}/keep`, { method: 'POST' })
    return answer.ok ? '' : (await answer.json()).error
  }

  async function cancel() {
    await api.interrupt(null)
    return ''
  }

  const picture = (image) => api.apiURL(`/view?${new URLSearchParams(image)}`)

  // The host warns of an event that nobody listens for, and its socket opens before the set-up.
  let ready = false
  api.addEventListener('seqlora.training', ({ detail }) => { if (ready) take(detail, false) })
  api.addEventListener('reconnected', catchUp)

  return {
    async setup() {
      ready = true
      await catchUp()
    },
    afterConfigureGraph() {
      for (const training of trainings.values()) show(training)
    }
  }
}

// The node at the end of a path such as "12:5": node 5 inside of the subgraph that node 12 of the root graph stands for.
function nodeAt(graph, path) {
  const ids = path.split(':')
  const last = ids.pop()
  for (const id of ids) graph = graph?.getNodeById(id)?.subgraph
  return graph?.getNodeById(last)
}
